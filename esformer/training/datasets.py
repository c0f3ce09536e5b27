"""Which images: scikit-learn's digits, CIFAR-10, or any folder of class folders (ImageNet is one); are they there?"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from esformer.errors import ESFormerError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "random")
VALIDATION_FOLDERS = ("val", "validation", "test")


class DataError(ESFormerError):
    """Images that are not there or not as they should be; says how to give them."""


@dataclass
class DataConfig:
    """Which images, and what is done with them whatever the recipe. The defaults are ImageNet's."""

    name: str = "imagenet"
    """`imagenet`, `folder` (any with train/CLASS/* and val/CLASS/*), `cifar10` or `digits` (scikit-learn's)."""
    root: str | None = None
    """Folder of the images; for imagenet the environment variable IMAGENET if not given."""
    img_size: int = 224
    """Height and width in pixels to which images are brought."""
    num_classes: int | None = 1000
    """Classes; null counts the folders."""
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
    """How images are resized."""
    train_images: int | None = None
    """Training images that there must be; null takes as many as there are."""
    val_images: int | None = None
    """Validation images that there must be; null takes as many as there are."""
    limit: int | None = None
    """Train on so many images only, drawn at random once; null is all."""
    max_corrupt: int = 100
    """Images that cannot be read and are skipped, each with its name in the log; one more ends the training."""
    timeout: float = 50
    """Seconds to wait for a batch before the images are given up for lost (with workers)."""
    workers: int = 4
    """Processes that load images, for each device."""

    def __post_init__(self) -> None:
        for name, least in (("img_size", 32), ("num_classes", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name} is {value}; it must be at least {least}")
        for name in ("hflip", "crop_pct"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name, count in (("mean", 3), ("std", 3), ("crop_scale", 2), ("crop_ratio", 2)):
            values = getattr(self, name)
            if len(values) != count or not all(0 < value < math.inf or name == "mean" for value in values):
                raise DataError(f"{name} is {values}; it must be {count} numbers above 0")
            if count == 2 and values[0] > values[1]:
                raise DataError(f"{name} is {values}; the smaller number comes first")
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(f"interpolation is {self.interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")


def resolve(config: DataConfig) -> DataConfig:
    """The configuration with its root found and its classes counted; refuses what cannot be there.

    Raises:
        DataError: an unknown name, no root, or a root without the folders that it needs.
    """
    if config.name in ("digits", "cifar10") and config.num_classes != 10:
        raise DataError(f"data.num_classes is {config.num_classes}; {config.name} has 10 classes")
    if config.name == "digits":
        return config
    if config.name not in ("imagenet", "folder", "cifar10"):
        raise DataError(f"data.name is {config.name!r}; it must be imagenet, folder, cifar10 or digits")
    root = config.root or (os.environ.get("IMAGENET") if config.name == "imagenet" else None)
    if root is None:
        variable = " (or set the environment variable IMAGENET)" if config.name == "imagenet" else ""
        raise DataError(
            f"no images for data={config.name}: give their folder with data.root=FOLDER{variable},"
            " or try the whole job on images that come with it, with --quick"
        )
    config.root = root
    if config.name == "cifar10" and (Path(root) / "cifar-10-batches-py").is_dir():
        return config
    train, val = folders(root)
    classes = [classes_in(folder) for folder in (train, val)]
    if not classes[0]:
        raise DataError(f"{train} has no class folders; each class needs a folder of its images there")
    if classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        raise DataError(f"{train} and {val} have different classes: {odd[0]!r} is in only one of them")
    if config.num_classes is None:
        config.num_classes = len(classes[0])
    if config.num_classes != len(classes[0]):
        raise DataError(f"{train} has {len(classes[0])} classes, but data.num_classes is {config.num_classes}")
    return config


def folders(root: str) -> tuple[Path, Path]:
    """The folders of the training and of the validation images."""
    if not Path(root).is_dir():
        raise DataError(f"data.root is {root}, which is not a folder")
    train = Path(root) / "train"
    val = next((Path(root) / name for name in VALIDATION_FOLDERS if (Path(root) / name).is_dir()), None)
    if not train.is_dir() or val is None:
        raise DataError(f"{root} must hold the folders train and val, each with one folder a class")
    return train, val


def classes_in(folder: Path) -> list[str]:
    """The class folders in a folder; hidden ones are none."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
