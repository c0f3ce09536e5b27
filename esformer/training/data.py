"""ImageDataModule: the loaders of training and validation images, in an order that a resumed run repeats."""

import random

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from esformer.training.datasets import DataConfig, DataError, resolve
from esformer.training.images import ImageDataset, build
from esformer.training.recipe import Recipe

IGNORE = -1
"""The class of images that only fill up a rank's share of the validation set; metrics leave them out."""

Item = tuple[Tensor, int]


class ImageDataModule(LightningDataModule):
    """Images as the recipe wants them: C, H, W float tensors, normalised, and class numbers.

    What happens to an image depends on the seed, the epoch and the image alone, so it is the same for any number of
    workers, and after a restart. Mixup needs whole batches and is the LightningModule's.

    Args:
        config: which images.
        recipe: batch size and augmentation.
        seed: of the order and the augmentation.
        accumulate: batches that are accumulated into one step; the recipe's batch size counts them all.

    Raises:
        DataError: the images are not there, or fewer than a batch; or the batch does not divide.
    """

    def __init__(self, config: DataConfig, recipe: Recipe, seed: int = 0, accumulate: int = 1) -> None:
        super().__init__()
        self.config, self.recipe, self.seed, self.accumulate = resolve(config), recipe, seed, accumulate

    def setup(self, stage: str) -> None:
        c, r = self.config, self.recipe
        common = dict(input_size=c.img_size, interpolation=c.interpolation, mean=c.mean, std=c.std)
        train = create_transform(
            **common,
            is_training=True,
            scale=c.crop_scale,
            ratio=c.crop_ratio,
            hflip=c.hflip,
            color_jitter=0.0,
            auto_augment=r.auto_augment,
            re_prob=r.random_erasing,
            re_mode="pixel",
        )
        self.train_set = Seeded(build(c, True, train), self.seed)
        self.val_set = Padded(build(c, False, create_transform(**common, crop_pct=c.crop_pct)), self._world_size)
        if len(self.train_set) < r.batch_size:
            raise DataError(
                f"there are {len(self.train_set)} training images, fewer than a batch;"
                f" recipe.batch_size={r.batch_size} must be at most that"
            )

    @property
    def batch_size(self) -> int:
        """Images a device takes at a time."""
        return device_batch_size(self.recipe.batch_size, self._world_size, self.accumulate)

    def train_dataloader(self) -> DataLoader[Item]:
        rank = self.trainer.global_rank if self.trainer else 0
        sampler = EpochSampler(self.train_set, self._world_size, rank, seed=self.seed, drop_last=True)
        sampler.set_epoch(self.trainer.current_epoch if self.trainer else 0)  # Lightning sets it too late on a resume
        return self._loader(self.train_set, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Item]:
        return self._loader(self.val_set, shuffle=False)

    def _loader(self, dataset: Dataset[Item], **kwargs: object) -> DataLoader[Item]:
        pin = torch.cuda.is_available()
        return DataLoader(dataset, self.batch_size, num_workers=self.config.workers, pin_memory=pin, **kwargs)  # type: ignore[arg-type]

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1


def device_batch_size(batch_size: int, world_size: int, accumulate: int) -> int:
    """Images a device takes at a time so that all devices and accumulated batches together take `batch_size`.

    Raises:
        DataError: it does not divide into even batches; says which batch size would.
    """
    parts = 2 * world_size * accumulate  # even batches, because Mixup pairs images
    if batch_size % parts:
        near = max(parts, round(batch_size / parts) * parts)
        raise DataError(
            f"recipe.batch_size={batch_size} does not divide into even batches for {world_size} devices"
            f" x {accumulate} accumulated; {near} would"
        )
    return batch_size // world_size // accumulate


class Seeded(Dataset[Item]):
    """A data set whose random transforms draw from a seed of their own for each epoch and image."""

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        with isolate_rng(include_cuda=False):
            seed_all(self.seed, self.epoch, index)
            return self.dataset[index]


class Padded(Dataset[Item]):
    """A data set filled up to a multiple of the number of ranks with images of the class IGNORE.

    All ranks get the same number of images and none is counted twice, so that metrics are exact.
    """

    def __init__(self, dataset: ImageDataset, multiple: int) -> None:
        self.dataset = dataset
        self.length = -(-len(dataset) // multiple) * multiple

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        if index < len(self.dataset):
            return self.dataset[index]
        return self.dataset[0][0], IGNORE


class EpochSampler(DistributedSampler[Item]):
    """A shuffled share for each rank that tells its data set the epoch, too."""

    dataset: Seeded

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataset.epoch = epoch


def seed_all(*numbers: int) -> None:
    """Seed Python's, numpy's and torch's global random states from some numbers that say where we are."""
    words = np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(words[0])  # noqa: NPY002 (timm's Mixup draws from the global state)
    torch.manual_seed(int(words[1]))
