"""What all that hold images have in common: their contract, their errors, their bounds."""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from esformer.errors import ESFormerError
from esformer.text import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
