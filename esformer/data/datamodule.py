"""ImageDataModule: batches of images in an order that is the same on any number of devices, and after a restart."""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from esformer.data.base import IGNORE, CorruptImage, DataError
from esformer.data.datasets import DataConfig, check_memory
from esformer.data.decoding import evaluation_transform, training_transform
from esformer.data.images import ImageDataset, build
from esformer.data.loader import Loader
from esformer.data.mixup import GroupMixup, ImageCutout, ImageErasing
from esformer.recipe import Recipe

log = logging.getLogger("esformer")

TRIES = 10
"""Images in a row that may be corrupt."""


class SampleIndex(NamedTuple):
    """Where an image stands: in which epoch, at which position of its order, and its number in the data set."""

    epoch: int
    position: int
    number: int


class Item(NamedTuple):
    """An image as a worker process gives it: uint8 of shape H, W, C."""

    image: Tensor
    target: int
    place: SampleIndex
    corrupt: tuple[str, ...] = ()


class Batch(NamedTuple):
    """Images, on their way: B, H, W, 3, uint8 from the workers; B, 3, H, W, normalised floats on the device."""

    images: Tensor
    targets: Tensor
    """B class numbers; after Mixup B, num_classes shares."""
    places: np.ndarray
    """B, 3: the SampleIndex of each image."""
    corrupt: tuple[str, ...] = ()
    """Images that could not be read and were skipped, each with the reason."""


class EvaluationDataModule(LightningDataModule):
    """The validation images, each once on any number of devices. Workers read and crop bytes, the device normalises.

    Args:
        config: which images, resolved.
        batch_size: images that a device takes at a time.
    """

    def __init__(self, config: DataConfig, batch_size: int) -> None:
        super().__init__()
        self.config, self._batch_size = config, batch_size
        self.corrupt: dict[str, str] = {}
        self._scale = torch.tensor([config.mean, config.std]).mul_(255).view(2, 3, 1, 1)

    def setup(self, stage: str) -> None:
        """Open the images: once, however often Lightning asks for it.

        Raises:
            DataError: the images are not there, or batches of them do not fit into memory.
        """
        if hasattr(self, "val_set"):
            return
        check_memory(c := self.config, self.batch_size)
        self.val_set = ValidationImages(build(c, False, evaluation_transform(c)), c.img_size)

    def describe(self) -> dict[str, Any]:
        """Which images they are and how one is prepared, as a checkpoint keeps it; after `setup`."""
        c = self.config
        prepared = dict(
            mean=list(c.mean), std=list(c.std), interpolation=c.evaluation_interpolation, crop_pct=c.crop_pct
        )
        return dict(name=c.name, classes=list(self.val_set.dataset.classes), **prepared)

    @property
    def batch_size(self) -> int:
        """Images a device takes at a time."""
        return self._batch_size

    def val_dataloader(self) -> DataLoader[Item]:
        sampler = DistributedEvalSampler(len(self.val_set), self.batch_size, self._rank, self._world_size)
        return self._loader(self.val_set, sampler)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count what could not be read.

        Raises:
            DataError: it is too much.
        """
        for message in batch.corrupt:
            name, _, reason = message.partition("\n")
            if name not in self.corrupt:
                self.corrupt[name] = reason
                limit = self.config.max_corrupt
                if len(self.corrupt) > limit:
                    raise DataError(f"{reason}; that makes more than data.max_corrupt={limit} images")
                log.error("%s; skipped, as %d of at most %d", reason, len(self.corrupt), limit)  # heard of any rank
        return batch._replace(corrupt=())

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise: B, 3, H, W, floats."""
        return batch._replace(images=self.normalise(batch.images))

    def normalise(self, images: Tensor) -> Tensor:
        """Bytes to floats with the data's mean and standard deviation: B, H, W, 3 -> B, 3, H, W, channels last."""
        if self._scale.device != images.device:
            self._scale = self._scale.to(images.device)
        mean, std = self._scale
        return images.permute(0, 3, 1, 2).to(torch.float32).sub_(mean).div_(std)

    def _loader(self, dataset: Dataset[Item], sampler: Sampler[list[SampleIndex]], **settings: Any) -> DataLoader[Item]:
        workers = self.config.loaders
        return Loader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self._on_gpu,
            patience=self.config.timeout,
            source=str(self.config.root or self.config.name),
            **settings,
        )

    @property
    def _on_gpu(self) -> bool:
        """Whether batches go to a GPU. A training on the CPU beside one has nothing to do with its memory."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0


class ImageDataModule(EvaluationDataModule):
    """Images as the recipe wants them.

    What happens to an image depends on the seed, the epoch and the image alone, and which images make a step on the
    seed and the epoch alone. So the steps are the same for any number of workers, devices and accumulated batches, and
    after a restart. Worker processes read, crop and augment bytes; the device normalises, erases and mixes.

    Args:
        config: which images, resolved.
        recipe: batch size and augmentation.
        seed: of the order and the augmentation.
        accumulate: batches that are accumulated into one step; the recipe's batch size counts them all.
    """

    def __init__(self, config: DataConfig, recipe: Recipe, seed: int = 0, accumulate: int = 1) -> None:
        super().__init__(config, recipe.batch_size)
        self.recipe, self.seed, self.accumulate = recipe, seed, accumulate
        assert self.config.num_classes is not None
        self.mixup = GroupMixup(recipe, self.config.num_classes, seed) if recipe.mixes else None
        self.erasing = ImageErasing(recipe.random_erasing, seed) if recipe.random_erasing > 0 else None
        self.cutout = ImageCutout(recipe.cutout, seed) if recipe.cutout > 0 else None
        self.hiding = [hide for hide in (self.erasing, self.cutout) if hide is not None]

    def setup(self, stage: str) -> None:
        """The same; there must be at least a batch of training images."""
        super().setup(stage)
        if hasattr(self, "train_set"):
            return
        c, r = self.config, self.recipe
        crop = training_transform(c, r.auto_augment, r.color_jitter, r.crop_padding)
        train_set = TrainingImages(build(c, True, crop), self.seed)
        if len(train_set) < r.batch_size:
            raise DataError(
                f"there are {len(train_set)} training images, fewer than a batch;"
                f" recipe.batch_size={r.batch_size} must be at most that"
            )
        self.train_set = train_set

    @property
    def batch_size(self) -> int:
        """Images a device takes at a time."""
        return device_batch_size(self.recipe.batch_size, self._world_size, self.accumulate)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; what is left of the images, less than a batch, waits for another epoch."""
        return len(self.train_set) // self.recipe.batch_size

    def train_dataloader(self) -> DataLoader[Item]:
        sampler = self.sampler(self._rank, self._world_size, self.accumulate)
        if self.trainer is not None:  # after a restart, go on where the checkpoint was written
            loop = self.trainer.fit_loop
            epoch: int = loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            done = loop.epoch_loop.batch_progress.current.completed
            sampler.resume(epoch, done if done < len(sampler) else 0)
        return self._loader(self.train_set, sampler, persistent_workers=self.config.loaders > 0)

    def sampler(self, rank: int, world_size: int, accumulate: int) -> "StepSampler":
        """The training batches of a rank, ordered as Mixup wants them, so that the device need not."""
        size = device_batch_size(self.recipe.batch_size, world_size, accumulate)
        order = self.mixup.order if self.mixup is not None else None
        return StepSampler(len(self.train_set), size, rank, world_size, accumulate, self.seed, order)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise, and in training erase, cut out and mix: B, 3, H, W, floats. Nothing here waits for the device."""
        images, targets, places = self.normalise(batch.images), batch.targets, batch.places
        epoch, position, _ = places[0].tolist()
        if self.trainer is None or self.trainer.training:
            for hide in self.hiding:
                hide(images, epoch, places[:, 2].tolist())
            targets = targets if self.mixup is None else self.mixup(images, targets, epoch, position)
        return Batch(images, targets, places)

    def name_of(self, place: Sequence[int]) -> str:
        """What a training image is called, to find it again."""
        return self.train_set.dataset.name_of(int(place[2]))

    def state_dict(self) -> dict[str, Any]:
        """The corrupt images seen so far, which a restart does not count again."""
        return {"corrupt": dict(self.corrupt)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.corrupt = dict(state_dict["corrupt"])


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


class TrainingImages(Dataset[Item]):
    """Training images whose random transforms draw from a seed of their own for each epoch and image.

    In the place of an image that cannot be read comes the next one.
    """

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: SampleIndex) -> Item:
        number = place.number
        corrupt: list[str] = []
        with nullcontext() if get_worker_info() else isolate_rng(include_cuda=False):  # nobody else draws in a worker
            while True:
                seed_all(self.seed, place.epoch, number)
                try:
                    image, target = self.dataset[number]
                    return Item(image, target, place._replace(number=number), tuple(corrupt))
                except CorruptImage as error:
                    corrupt.append(_describe(self.dataset, number, error))
                    if len(corrupt) == TRIES:
                        raise DataError(f"{error}; nor can the {TRIES - 1} images after it") from None
                    number = (number + 1) % len(self.dataset)


class ValidationImages(Dataset[Item]):
    """Validation images; what cannot be read, and what lies beyond the end, is a black image of the class IGNORE."""

    def __init__(self, dataset: ImageDataset, img_size: int) -> None:
        self.dataset, self.img_size = dataset, img_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: SampleIndex) -> Item:
        black = torch.zeros(self.img_size, self.img_size, 3, dtype=torch.uint8)
        if place.number >= len(self.dataset):
            return Item(black, IGNORE, place)
        try:
            image, target = self.dataset[place.number]
        except CorruptImage as error:
            return Item(black, IGNORE, place, (_describe(self.dataset, place.number, error),))
        return Item(image, target, place)


class StepSampler(Sampler[list[SampleIndex]]):
    """The training batches of one rank: all batches of all ranks that make a step hold the same images in any setup.

    A step takes the next `batch_size * world_size * accumulate` images of the epoch's shuffled order: first those of
    the first batch of rank 0, then of rank 1, and so on. It drops what is left at the end.

    Args:
        length: images there are.
        batch_size: images of a batch.
        rank: this one.
        world_size: how many there are.
        accumulate: batches of a step.
        seed: of the order.
        arrange: gives the order within a batch from its first position and its length; its first image stays first.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int,
        world_size: int,
        accumulate: int,
        seed: int,
        arrange: Callable[[int, int], Sequence[int]] | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed, self.arrange = length, batch_size, seed, arrange
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.sampler = self  # Lightning tells the epoch to `batch_sampler.sampler`
        self.epoch = 0
        self._done: dict[int, int] = {}  # batches of an epoch that were done before a restart

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def resume(self, epoch: int, done: int) -> None:
        """Begin in an epoch of which so many batches are done; all others are whole."""
        self.epoch, self._done = epoch, {epoch: done}

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world_size * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        epoch, start = self.epoch, self._done.get(self.epoch, 0)
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0])
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(seed)).tolist()
        return (self._batch(epoch, order, batch) for batch in range(start, len(self)))

    def _batch(self, epoch: int, order: list[int], batch: int) -> list[SampleIndex]:
        first = (batch * self.world_size + self.rank) * self.batch_size
        within = self.arrange(first, self.batch_size) if self.arrange else range(self.batch_size)
        return [SampleIndex(epoch, first + i, order[first + i]) for i in within]


class DistributedEvalSampler(Sampler[list[SampleIndex]]):
    """The validation batches of one rank: each image once, and as many batches of the same sizes on every rank.

    Args:
        length: images there are.
        batch_size: images of a batch.
        rank: this one.
        world_size: how many there are.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world_size: int) -> None:
        share = -(-length // world_size)
        self.numbers, self.batch_size = range(rank, share * world_size, world_size), batch_size

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        for start in range(0, len(self.numbers), self.batch_size):
            yield [SampleIndex(0, number, number) for number in self.numbers[start : start + self.batch_size]]


def collate(items: Sequence[Item]) -> Batch:
    """Items to a batch: bytes, for they are a quarter of the floats that they become on the device."""
    return Batch(
        default_collate([item.image for item in items]),  # in a worker straight into shared memory
        torch.tensor([item.target for item in items]),
        np.array([item.place for item in items]),
        tuple(name for item in items for name in item.corrupt),
    )


def seed_all(*numbers: int) -> None:
    """Seed the global random states of Python, numpy and torch on the CPU from some numbers that say where we are."""
    words = np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(words[0])  # noqa: NPY002 (timm's transforms draw from the global state)
    torch.default_generator.manual_seed(int(words[1]))  # torch.manual_seed takes a hundred times as long


def _describe(dataset: ImageDataset, number: int, error: CorruptImage) -> str:
    return f"{dataset.name_of(number)}\n{error}"
