"""Mixup, CutMix, random erasing and cutout on the device, the same for any number of devices."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from esformer.recipe import Recipe

GROUP = 128
"""Images that share a draw of Mixup: the batch of one device where 1024 images are spread over eight, as in the code
that Table 2 comes from (EfficientFormer's, with timm's Mixup in batch mode)."""


CUTOUT = 1
"""What the draws of cutout begin with, so that they are others than those of erasing."""


class GroupMixup:
    """timm's Mixup and CutMix, with draws that depend on the seed, the epoch and the place in the epoch alone.

    Each image is mixed with its neighbour in the epoch's order, and GROUP images in a row share one draw, so it does
    not matter how the images of a step are spread over devices and accumulated batches, as long as each gets an even
    number.

    Args:
        recipe: the probabilities and smoothing of Table 2.
        num_classes: classes of the targets.
        seed: of the draws.
    """

    def __init__(self, recipe: Recipe, num_classes: int, seed: int) -> None:
        self.seed = seed
        self.mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mixup_prob,
            switch_prob=recipe.mixup_switch_prob,
            label_smoothing=recipe.smoothing,
            num_classes=num_classes,
        )

    def order(self, position: int, count: int) -> list[int]:
        """How a batch must be ordered, for timm mixes the first image of a group with the last one, and so on.

        Args:
            position: of the batch's first image in the epoch; even.
            count: images of the batch; even.
        """
        found: list[int] = []
        for start, stop in self._groups(position, count):
            found += [*range(start, stop, 2), *range(stop - 1, start, -2)]
        return found

    def __call__(self, images: Tensor, targets: Tensor, epoch: int, position: int) -> Tensor:
        """Mix a batch in place; gives its soft targets.

        Args:
            images: B, C, H, W, floats, in `order`.
            targets: B class numbers, likewise.
            epoch: for the draws.
            position: of the batch's first image in the epoch.

        Returns:
            B, num_classes: smoothed shares of each class.
        """
        mixed = []
        for start, stop in self._groups(position, len(images)):
            group = (position + start) // GROUP
            np.random.seed(np.random.SeedSequence((self.seed, epoch, group)).generate_state(4))  # noqa: NPY002 (timm's)
            mixed.append(self.mixup(images[start:stop], targets[start:stop])[1])
        return torch.cat(mixed)

    @staticmethod
    def _groups(position: int, count: int) -> Iterator[tuple[int, int]]:
        start = 0
        while start < count:
            stop = min(count, start + GROUP - (position + start) % GROUP)
            yield start, stop
            start = stop


class ImageErasing:
    """timm's random erasing, with draws that depend on the seed, the epoch and the image alone.

    Args:
        probability: share of images in which a rectangle is replaced by noise.
        seed: of the draws.
    """

    def __init__(self, probability: float, seed: int) -> None:
        self.seed = seed
        self.erasing = RandomErasing(probability, mode="pixel")

    def __call__(self, images: Tensor, epoch: int, numbers: list[int]) -> None:
        """Erase in place.

        Args:
            images: B, C, H, W, normalised floats.
            epoch: for the draws.
            numbers: of the images in their data set.
        """
        self.erasing.device = images.device
        on_cuda = images.device.type == "cuda"
        noise = torch.cuda.default_generators[images.device.index] if on_cuda else torch.default_generator
        for index, number in enumerate(numbers):
            key = hash((self.seed, epoch, number)) % 2**63
            if random.Random(key).random() <= self.erasing.probability:  # what timm will draw first; most are left here
                random.seed(key)
                noise.manual_seed(key)  # torch.manual_seed, of all devices, takes a hundred times as long
                self.erasing(images[index])


class ImageCutout:
    """Cutout (DeVries and Taylor 2017, arXiv:1708.04552) as DARTS has it, drawn from seed, epoch and image alone.

    timm's and torchvision's erasing draw the size, too, and keep the square within the image.

    Args:
        pixels: side of the square. Its centre is anywhere in the image, so part of it may lie outside.
        seed: of the draws.
    """

    def __init__(self, pixels: int, seed: int) -> None:
        self.half, self.seed = pixels // 2, seed

    def __call__(self, images: Tensor, epoch: int, numbers: list[int]) -> None:
        """Make the square 0, the mean, in place.

        Args:
            images: B, C, H, W, normalised floats.
            epoch: for the draws.
            numbers: of the images in their data set.
        """
        sides = images.shape[2:]
        draws = (random.Random(hash((CUTOUT, self.seed, epoch, number)) % 2**63) for number in numbers)
        centres = torch.tensor([[rng.randrange(side) for side in sides] for rng in draws])  # B, 2
        if images.is_cuda:
            centres = centres.pin_memory()
        rows, columns = (
            (torch.arange(side, device=images.device) - centre[:, None] + self.half) // (2 * self.half) == 0
            for side, centre in zip(sides, centres.to(images.device, non_blocking=True).unbind(1), strict=True)
        )  # B, H and B, W
        images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
