"""What all that hold images have in common: their contract, their errors, their bounds."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from esformer import plugins
from esformer.errors import ESFormerError
from esformer.text import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IGNORE = -1
"""The class of images that are not counted: they only fill up a rank's share of the validation set, or are corrupt."""
MOST_CLASSES = 100_000
"""The memory of a confusion matrix grows with their square, to 80 GB."""
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
THREADS = 16  # a network file system answers many questions at a time as soon as one
LARGEST_FILE = 2**30
"""Bytes; no image of as many pixels as are decoded is larger."""


class DataError(ESFormerError):
    """Images that are not there or not as they should be; says how to give them."""


class CorruptImage(DataError):
    """One image that was read but is none; the others may be well. The message names it and says what is wrong."""


class Source(Protocol):
    """Images as they lie on disk, with the numbers of their classes."""

    place: str
    """Where they are, for messages."""
    classes: list[str]
    """Names of the classes, by number."""
    labels: "NDArray[np.int64]"
    """N: the number of each image's class."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The file of an image, as it is.

        Raises:
            CorruptImage: the container can be read, but not this image in it.
            DataError: the images are gone.
        """
        ...

    def name_of(self, index: int) -> str:
        """Where an image is, for messages."""
        ...


def missing_data_error(path: Path | str, error: OSError) -> DataError:
    """What to raise where files are not there any more, or their file system is not."""
    reason = os.strerror(error.errno) if error.errno else error  # pyarrow's own text is long, and names the file again
    question = "may you read it?" if error.errno in (errno.EACCES, errno.EPERM) else "are the images gone?"
    return DataError(f"{printable(str(path))} cannot be read ({reason}): {question}")


def is_folder(path: Path) -> bool:
    """Whether there is a folder; no name is too long or too odd to ask for."""
    try:
        return path.is_dir()
    except OSError:
        return False


NAMES = ("imagenet", "folder", "cifar10", "digits", "synthetic")
"""The data sets that this library knows."""
Opener = Callable[[Any, bool], Source]
_Opener = TypeVar("_Opener", bound=Opener)
_OPENERS: dict[str, Opener] = {}


def register_data_source(name: str) -> Callable[[_Opener], _Opener]:
    """Make images known as `data.name=NAME`; a decorator of the function that opens them.

    It gets the `DataConfig` and whether the training or the validation images are wanted, and returns a `Source`: the
    bytes of encoded images and their classes. Commands find it if an installed package names its module as an entry
    point of the group `esformer.data_sources`. The processes that load images unpickle the source.

    Args:
        name: small letters, digits, _ and -.

    Raises:
        DataError: the name cannot be one, or is taken.

    Examples:
        >>> @register_data_source("flowers")
        ... def open_flowers(config, train):
        ...     ...  # gives a `Source` with what lies in the folder `config.root`
        >>> "flowers" in data_names()
        True
    """
    if not re.fullmatch("[a-z][a-z0-9_-]*", name):
        raise DataError(f"a data source is called {name!r}; its name must be small letters, digits, _ and -")

    def register(opener: _Opener) -> _Opener:
        if name in NAMES or plugins.is_taken(_OPENERS.get(name), opener):
            raise DataError(f"there is a data source {name!r} already; choose another name")
        _OPENERS[name] = opener
        return opener

    return register


def data_names() -> list[str]:
    """The names of all data sets, those that others registered last."""
    plugins.load(plugins.DATA_SOURCES)
    return [*NAMES, *sorted(_OPENERS)]


def registered_opener(name: str) -> Opener | None:
    """What opens the images of this name; None if they are not from elsewhere."""
    if name not in _OPENERS and name not in NAMES:
        plugins.load(plugins.DATA_SOURCES)
    return _OPENERS.get(name)
