"""A few training images as a tensor, prepared as validation images are: for what looks at images without training."""

from dataclasses import replace

import torch
from torch import Tensor

from esformer.data.base import CorruptImage, DataError
from esformer.data.datasets import DataConfig, resolve
from esformer.data.decoding import evaluation_transform
from esformer.data.images import build


def sample_images(config: DataConfig, size: int, img_size: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Training images drawn at random, the same for the same seed; those that cannot be decoded are passed over.

    Args:
        config: which images; need not be resolved.
        size: how many.
        img_size: their height and width in pixels; None for the data's.
        seed: of the draw.

    Returns:
        Images (B, 3, H, W, normalised float32) and the numbers of their classes (B).

    Raises:
        DataError: the images are not there, or not so many.
    """
    config = resolve(replace(config, img_size=img_size or config.img_size))
    dataset = build(config, True, evaluation_transform(config))
    found: list[tuple[Tensor, int]] = []
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    for number in order.tolist():
        if len(found) == size:
            break
        try:
            found.append(dataset[number])
        except CorruptImage:
            continue
    if len(found) < size:
        place = config.root or config.name
        raise DataError(f"of the training images of {place} {len(found)} can be read, fewer than the {size} asked for")
    mean, std = torch.tensor([config.mean, config.std]).mul(255).view(2, 1, 3, 1, 1)
    pixels = torch.stack([image for image, _ in found]).permute(0, 3, 1, 2).float()  # B, H, W, 3 -> B, 3, H, W
    return pixels.sub_(mean).div_(std).contiguous(), torch.tensor([label for _, label in found])
