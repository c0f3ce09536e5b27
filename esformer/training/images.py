"""The data sets themselves: items are a transformed image and the number of its class."""

from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torchvision import datasets

from esformer.training.datasets import DataConfig, DataError, classes_in, folders

Transform = Callable[[Any], Any]


class ImageDataset(Sized, Protocol):
    """A data set whose items are images and class numbers."""

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


def build(config: DataConfig, train: bool, transform: Transform) -> ImageDataset:
    """The training or the validation images of a resolved configuration, each a PIL image through `transform`.

    Raises:
        DataError: a class has no images.
    """
    if config.name == "digits":
        return Digits(train, transform)
    assert config.root is not None
    if (Path(config.root) / "cifar-10-batches-py").is_dir():
        return datasets.CIFAR10(config.root, train=train, transform=transform)
    folder = folders(config.root)[0 if train else 1]
    try:
        return Folder(str(folder), transform=transform, loader=read_image)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {error}") from None


class Folder(datasets.ImageFolder):
    """Class folders of images; hidden folders are none."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = classes_in(Path(directory))
        return classes, {name: index for index, name in enumerate(classes)}


def read_image(path: str) -> Image.Image:
    """An image file as RGB.

    Raises:
        DataError: it cannot be read; names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not an image that can be read ({error}); mend or remove it") from None


class Digits:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; a fifth, the same always, is held out for validation."""

    def __init__(self, train: bool, transform: Transform) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
        self.images, self.labels = (split[0], split[2]) if train else (split[1], split[3])
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = (self.images[index].reshape(8, 8) * (255 / 16)).astype("uint8")
        return self.transform(Image.fromarray(pixels).convert("RGB")), int(self.labels[index])
