"""Which images: class folders or shards (ImageNet is one), CIFAR-10, digits, or made-up ones; are they all there?

Configurations import this, so it loads neither numpy nor torch before images are asked for.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from esformer.data.base import MOST_CLASSES, NAMES, DataError, Source, data_names, is_folder, registered_opener

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos")
"""What timm and torchvision can resize with, in training and in evaluation."""
DECODERS = ("torchvision", "pil")
CONTENTS = {"digits": (1437, 360), "cifar10": (50_000, 10_000)}
"""Training and validation images of the sets that are always the same."""
LARGEST_IMAGE = 2048
"""Pixels each way; the memory of attention's tables grows with their fourth power."""
RANGES = {"img_size": (32, LARGEST_IMAGE), "num_classes": (1, MOST_CLASSES), "workers": (0, 256)}
RANGES |= {"train_images": (1, 10**8), "val_images": (1, 10**8), "limit": (1, 10**8)}
RANGES |= {"max_corrupt": (0, 10**8), "timeout": (1, 10**6)}
"""Least and most of the settings that are numbers. More would need more memory than machines have, or, of the timeout,
overflow the clock of the operating system."""
MOST_WORKERS = 16
"""More do not help a network of this size on one device, and each takes memory."""


@dataclass
class DataConfig:
    """Which images, and what is done with them whatever the recipe. The defaults are ImageNet's."""

    name: str = "imagenet"
    """`imagenet` or `folder` (any; class folders, WebDataset or Parquet), `cifar10`, `digits` or `synthetic`."""
    root: str | None = None
    """Folder of the images or of their shards; for imagenet the environment variable IMAGENET if not given."""
    img_size: int = 224
    """Height and width in pixels to which images are brought."""
    num_classes: int | None = 1000
    """Classes; null counts them."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    """Mean of each channel, subtracted."""
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    """Standard deviation of each channel, divided by."""
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Smallest and largest share of the image that a random training crop keeps."""
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Smallest and largest aspect ratio of a random training crop."""
    hflip: float = 0.5
    """Share of training images that are mirrored."""
    crop_pct: float = 0.95
    """Side of the central crop in evaluation, as a share of the resized image."""
    interpolation: str = "bicubic"
    """How images are resized; `random` draws bilinear or bicubic in training, and is bicubic in evaluation."""
    decoder: str = "torchvision"
    """What decodes and resizes JPEGs: `torchvision`, or `pil`, slower; they differ by roundings of the resize."""
    train_images: int | None = None
    """Training images that there must be; null takes as many as there are."""
    val_images: int | None = None
    """Validation images that there must be; null takes as many as there are."""
    limit: int | None = None
    """Train on so many images only, drawn at random, the same for every seed; null is all."""
    max_corrupt: int = 100
    """Images that a device may find unreadable; each is named in the log and skipped. One more ends the training."""
    timeout: float = 50
    """Seconds to wait for a batch before the images are given up for lost (with workers)."""
    workers: int | str | None = None
    """Processes that load images, for each device; null or `auto` takes one for each CPU that the device's process has,
    16 at most. They change the speed, not the images."""

    def __post_init__(self) -> None:
        if isinstance(self.workers, str):
            if self.workers != "auto" and not self.workers.isdecimal():
                raise DataError(f"workers is {self.workers!r}; it must be a number of processes, or auto")
            self.workers = None if self.workers == "auto" else int(self.workers)
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                bound = f"at most {most:,}" if value > most else f"at least {least}"
                raise DataError(f"{name} is {value}; it must be {bound}")
        if not 0 <= self.hflip <= 1:
            raise DataError(f"hflip is {self.hflip}; it must be from 0 to 1")
        _check_span("crop_scale", self.crop_scale, 1e-4, 1)
        _check_span("crop_ratio", self.crop_ratio, 1e-2, 100)
        check_preparation(self.mean, self.std, self.evaluation_interpolation, self.crop_pct)
        if self.decoder not in DECODERS:
            raise DataError(f"decoder is {self.decoder!r}; it must be one of {', '.join(DECODERS)}")

    @property
    def evaluation_interpolation(self) -> str:
        """How images are resized where nothing is random."""
        return "bicubic" if self.interpolation == "random" else self.interpolation

    @property
    def known_classes(self) -> int:
        """How many classes there are: ImageNet's 1,000 until they are counted."""
        return self.num_classes or 1000

    @property
    def loaders(self) -> int:
        """How many processes load images: `workers`, or one for each CPU of this process."""
        return default_workers(cpus()) if self.workers is None else int(self.workers)


def check_preparation(mean: Any, std: Any, interpolation: Any, crop_pct: Any, channels: int | None = 3) -> None:
    """Refuse what images cannot be prepared with, whoever says it: a setting, or a file that was loaded.

    Args:
        mean: of each channel of images whose values are from 0 to 1; a list or a tuple.
        std: of each channel, so many as means.
        interpolation: one of INTERPOLATIONS.
        crop_pct: side of the central crop, as a share of the resized image.
        channels: of the images; None takes any number.

    Raises:
        DataError: says which of them is wrong, and what would be right.
    """
    for name, values, least, most in (("mean", mean, 0.0, 1.0), ("std", std, 0.001, 1.0)):
        count = channels or max(1, len(mean) if isinstance(mean, list | tuple) else 1)
        right = isinstance(values, list | tuple) and len(values) == count
        if not right or not all(_is_number(value) and least <= value <= most for value in values):
            numbers = f"{count} numbers" if count > 1 else "a list of one number"
            raise DataError(
                f"{name} is {values!r}; it must be {numbers} from {least:g} to {most:g}, one for each channel of images"
                " whose values are from 0 to 1"
            )
    if not (_is_number(crop_pct) and 0.1 <= crop_pct <= 1):
        raise DataError(f"crop_pct is {crop_pct!r}; it must be from 0.1 to 1")
    if not isinstance(interpolation, str) or interpolation not in INTERPOLATIONS:
        raise DataError(f"interpolation is {interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")


def _check_span(name: str, values: list[float], least: float, most: float) -> None:
    if len(values) != 2 or not least <= values[0] <= values[1] <= most:
        raise DataError(f"{name} is {values}; it must be 2 numbers from {least:g} to {most:g}, the smaller one first")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cpus() -> int:
    """CPUs that this process may use: by affinity, and by the quota of its cgroup."""
    from joblib import cpu_count

    return int(cpu_count())


def default_workers(cpus: int) -> int:
    """Processes that load images for a device whose own process has so many CPUs."""
    return min(cpus, MOST_WORKERS)


def resolve(config: DataConfig, train: bool = True) -> DataConfig:
    """A copy of the configuration with its root found and its classes counted; refuses what cannot be there.

    Everything is looked at but the pixels: layout, classes of both splits, numbers of images.

    Args:
        config: which images.
        train: whether there must be training images; without them, what is asked of them is dropped.

    Raises:
        DataError: an unknown name, no root, a root without what it needs, or not as many images as there must be.
    """
    config, name = replace(config), config.name
    if name not in NAMES and registered_opener(name) is None:
        raise DataError(f"data.name is {name!r}; it must be one of {', '.join(data_names())}")
    if name in CONTENTS and config.num_classes != 10:
        raise DataError(f"data.num_classes is {config.num_classes}; {name} has 10 classes")
    if name == "synthetic":
        for setting in ("num_classes", "train_images", "val_images"):
            if getattr(config, setting) is None:
                raise DataError(f"data.{setting} is null; give a number, for synthetic images are made as needed")
        assert config.train_images and config.val_images
        _check_counts(config, ("synthetic",) * 2, (config.train_images, config.val_images))
        return config
    if not train:
        config.train_images = config.limit = None
    if name == "digits":
        _check_counts(config, ("digits",) * 2, CONTENTS[name])
        return config
    if opener := registered_opener(name):
        first, val = opener(config, train), opener(config, False)
        _check_agree(name, first, val)
    else:
        config.root = root = _root(config)
        if torchvision_cifar10(config):
            _check_counts(config, (root,) * 2, CONTENTS[name])
            return config

        from esformer.data.sources import open_both, open_source

        if train:
            first, val = open_both(Path(root))
        else:
            first = val = open_source(Path(root), train=False)
    _check_classes(config, first)
    _check_counts(config, (first.place, val.place), (len(first), len(val)))
    return config


def torchvision_cifar10(config: DataConfig) -> bool:
    """Whether the images are CIFAR-10 as torchvision keeps it."""
    return config.name == "cifar10" and config.root is not None and is_folder(Path(config.root, "cifar-10-batches-py"))


def check_memory(config: DataConfig, batch_size: int) -> None:
    """Refuse batches that cannot be in memory together, before the system kills who tries.

    Args:
        config: which images.
        batch_size: images that a device takes at a time.

    Raises:
        DataError: says what would fit.
    """
    batches = 2 * config.loaders + 2  # a worker makes two in advance; one is in use and another on its way
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    need = batches * batch_size * 3 * config.img_size**2
    if need > have:
        fit = int((have / (batches * batch_size * 3)) ** 0.5) // 32 * 32
        smaller = f"data.img_size={fit} would fit, or " if fit >= RANGES["img_size"][0] else ""
        raise DataError(
            f"{batches} batches of {batch_size} images of {config.img_size} pixels take {need / 1e9:,.0f} GB, and this"
            f" machine has {have / 1e9:,.0f}: {smaller}smaller batches (trainer.accumulate) or fewer data.workers"
        )


def _root(config: DataConfig) -> str:
    root = config.root or (os.environ.get("IMAGENET") if config.name == "imagenet" else None)
    if root is None:
        variable = " (or set the environment variable IMAGENET)" if config.name == "imagenet" else ""
        raise DataError(
            f"no images for data={config.name}: give their folder with data.root=FOLDER{variable},"
            " or try the whole job on images that come with it, with --quick"
        )
    try:
        root.encode()
    except UnicodeEncodeError:  # Python's way to write bytes that are no text; no file could keep what the run is of
        raise DataError(f"data.root is {root}, which is not UTF-8; rename the folder") from None
    if not is_folder(Path(root)):
        raise DataError(f"data.root is {root}, which is not a folder")
    return root


def _check_classes(config: DataConfig, source: Source) -> None:
    count = len(source.classes)
    if count > MOST_CLASSES:
        raise DataError(f"{source.place} has {count:,} classes; there can be at most {MOST_CLASSES:,}")
    if config.num_classes is None:
        config.num_classes = count
    if config.num_classes != count:
        raise DataError(f"{source.place} has {count} classes, but data.num_classes is {config.num_classes}")


def _check_agree(name: str, first: Source, val: Source) -> None:
    """Refuse what somebody's source says of itself and cannot be, before a training meets it."""
    for source in (first, val):
        if len(source.labels) != len(source) or not set(source.labels) <= set(range(len(source.classes))):
            raise DataError(
                f"data source {name!r}: {source.place} has {len(source):,} images, {len(source.labels):,} labels and"
                f" {len(source.classes):,} classes; each image needs a label, from 0 to the number of classes less 1"
            )
    if list(first.classes) != list(val.classes):
        raise DataError(f"data source {name!r}: {first.place} and {val.place} have different classes")


def _check_counts(config: DataConfig, places: tuple[str, str], counts: tuple[int, int]) -> None:
    for setting, place, count in zip(("train_images", "val_images"), places, counts, strict=True):
        wanted = getattr(config, setting)
        if wanted is not None and wanted != count:
            raise DataError(
                f"{place} has {count} images, but data.{setting} is {wanted}: is everything unpacked?"
                f" data.{setting}=null takes what there is"
            )
    if config.limit is not None and config.limit > counts[0]:
        raise DataError(f"data.limit is {config.limit}, but {places[0]} has only {counts[0]} training images")
