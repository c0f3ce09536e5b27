"""The data sets themselves: items are a transformed image and the number of its class."""

import io
import pickle
import warnings
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

from esformer.data.base import CorruptImage, DataError, Source, missing_data_error, registered_opener
from esformer.data.datasets import DataConfig, torchvision_cifar10
from esformer.data.decoding import check_dimensions, decode_jpeg, decodes_fast
from esformer.data.sources import open_source, read_file

LIMIT_SEED = 0
"""Of the images that data.limit draws: the same ones in all runs, so that seeds differ in training alone."""
POOL = 64
"""Synthetic images that are really made; more would tell nothing else about speed."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000")
"""What files with the endings of images hold, whatever theirs is. Some others of Pillow's start other programs."""

Transform = Callable[[Any], Any]


class ImageDataset(Sized, Protocol):
    """A data set whose items are images and class numbers.

    Any image can be had at any time, by its number: the same order for any number of processes, and the way back into
    the middle of an epoch, rest on that. For the same reason shards are not streamed. It may be pickled and forked.
    """

    classes: list[str]
    """Names of the classes, by number; empty if they have none."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Give an image and its class number.

        Raises:
            CorruptImage: this image cannot be decoded; names it.
            DataError: the images are gone.
        """
        ...

    def name_of(self, index: int) -> str:
        """Where an image comes from, for messages: a path, or a shard and what it is called there."""
        ...


def build(config: DataConfig, train: bool, transform: Transform) -> ImageDataset:
    """The training or the validation images of a resolved configuration, each through `transform`.

    That gets a PIL image in RGB; of a JPEG a uint8 tensor of shape C, H, W where `config.decoder` is torchvision.
    `config.limit` keeps so many training images, drawn at random with a seed of its own; a larger limit keeps those of
    a smaller one.

    Raises:
        DataError: they are not there, or cannot be read.
    """
    made: ImageDataset
    if config.name == "digits":
        made = Digits(train, transform)
    elif config.name == "synthetic":
        count = config.train_images if train else config.val_images
        assert count is not None and config.num_classes is not None
        made = Synthetic(count, config.num_classes, config.img_size, transform)
    elif opener := registered_opener(config.name):
        made = ImageFileDataset(opener(config, train), transform, decodes_fast(config))
    else:
        assert config.root is not None
        if torchvision_cifar10(config):
            made = Cifar10(config.root, train, transform)
        else:
            made = ImageFileDataset(open_source(Path(config.root), train), transform, decodes_fast(config))
    if train and config.limit is not None:
        made = Subset(made, np.random.default_rng(LIMIT_SEED).permutation(len(made))[: config.limit])
    return made


class ImageFileDataset:
    """Images that lie in files or shards, and are decoded.

    Args:
        source: where they are.
        transform: gets a PIL image or, if it is a JPEG and they are decoded fast, a tensor.
        fast: let torchvision decode.
    """

    def __init__(self, source: Source, transform: Transform, fast: bool = False) -> None:
        self.source, self.transform, self.fast, self.classes = source, transform, fast, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        data = self.source.read(index)
        image: Any = decode_jpeg(data) if self.fast else None
        if image is None:
            try:
                image = decode(data)
            except CorruptImage as error:
                raise CorruptImage(f"{self.name_of(index)} {error}") from None
        return self.transform(image), int(self.source.labels[index])

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)


class Subset:
    """Some images of a data set, in its order."""

    def __init__(self, dataset: ImageDataset, indices: NDArray[np.int64]) -> None:
        self.dataset, self.indices, self.classes = dataset, np.sort(indices), dataset.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[int(self.indices[index])]

    def name_of(self, index: int) -> str:
        return self.dataset.name_of(int(self.indices[index]))


class InMemoryDataset:
    """Images that are all in memory."""

    labels: Any

    def __init__(self, name: str, transform: Transform, classes: list[str]) -> None:
        self.name, self.transform, self.classes = name, transform, classes

    def image(self, index: int) -> Image.Image:
        """An image in RGB."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.image(index)), int(self.labels[index])

    def name_of(self, index: int) -> str:
        return f"image {index} of {self.name}"


class Digits(InMemoryDataset):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; a fifth, the same always, is held out for validation."""

    def __init__(self, train: bool, transform: Transform) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        super().__init__("the digits", transform, list("0123456789"))
        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
        self.images, self.labels = (split[0], split[2]) if train else (split[1], split[3])

    def image(self, index: int) -> Image.Image:
        pixels = (self.images[index].reshape(8, 8) * (255 / 16)).astype("uint8")
        return Image.fromarray(pixels).convert("RGB")


class Cifar10(InMemoryDataset):
    """CIFAR-10 as torchvision keeps it, in `cifar-10-batches-py`.

    Raises:
        DataError: its files are not whole.
    """

    def __init__(self, root: str, train: bool, transform: Transform) -> None:
        from torchvision.datasets import CIFAR10

        try:
            read = CIFAR10(root, train=train)
        except OSError as error:
            raise missing_data_error(root, error) from None
        except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError):
            raise DataError(f"{root}/cifar-10-batches-py is not whole; unpack cifar-10-python.tar.gz again") from None
        super().__init__(f"CIFAR-10's {'training' if train else 'validation'} images", transform, read.classes)
        self.pixels, self.labels = read.data, np.array(read.targets)  # N, 32, 32, 3

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


class Synthetic(InMemoryDataset):
    """Noise, to measure speed and to rehearse where there are no images; nothing can be learnt from it.

    An image depends on its number alone; there are few that differ.
    """

    def __init__(self, count: int, num_classes: int, img_size: int, transform: Transform) -> None:
        super().__init__("the synthetic images", transform, [])
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (min(POOL, count), img_size, img_size, 3), dtype=np.uint8)
        self.labels, self.num_classes = range(count), num_classes

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.image(index)), self.labels[index] % self.num_classes

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index % len(self.pixels)])


def decode(data: bytes) -> Image.Image:
    """An encoded image as RGB.

    Raises:
        CorruptImage: it is none, or its values are of no known range; says why.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # odd EXIF does no harm
            Image.open(io.BytesIO(data), formats=FORMATS) as image,
        ):
            return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever a broken header leads them to
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise CorruptImage(f"is not an image that can be read ({reason or type(error).__name__})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB of 8 bits, before any memory is taken for its pixels.

    Values of 16 bits are brought to 8 by their range; Pillow itself would cut them off at 255. Of colours of 16 bits it
    gives the upper 8. Transparency is dropped, as timm and torchvision do. What is signed, floating point or of
    32 bits says nowhere which values are black and white, so it is refused.

    Raises:
        ValueError: says why it cannot be.
    """
    check_dimensions(*image.size)
    white, inverted = 65535, False
    if isinstance(image, TiffImageFile):
        bits, tags = max(image.tag_v2.get(BITSPERSAMPLE, (1,))), image.tag_v2
        if set(tags.get(SAMPLEFORMAT, (1,))) != {1}:
            raise ValueError("signed or floating point values, of no known range: save it with 8 or 16 bits, unsigned")
        if bits > 8 and tags.get(PLANAR_CONFIGURATION) == 2 and len(image.getbands()) > 1:
            raise ValueError(f"colours of {bits} bits one after the other, which Pillow confuses: save it as PNG")
        white, inverted = 2**bits - 1, tags.get(PHOTOMETRIC_INTERPRETATION) == 0
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError("values of 32 bits, of no known range: save it with 8 or 16 bits, unsigned")
    if image.mode == "La":  # Pillow has no other way
        return image.convert("LA").convert("RGB")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    levels = np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)
    return Image.fromarray((levels[::-1] if inverted else levels)[np.asarray(image)]).convert("RGB")


def read_image(path: str) -> Image.Image:
    """An image file as RGB.

    Raises:
        DataError: it cannot be read; names the file. CorruptImage if it is no image.
    """
    data = read_file(path)
    try:
        return decode(data)
    except CorruptImage as error:
        raise CorruptImage(f"{path} {error}; mend or remove it") from None
