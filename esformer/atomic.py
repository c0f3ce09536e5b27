"""Files that are whole or not there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from esformer.errors import ESFormerError
from esformer.files import FileError, unwritable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of a disk that is full, or a file that may not become as large."""


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a kill at any moment leaves the old file or the new one, never half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same for any other file.

    Raises:
        FileError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # a disk that is full needs the room
        raise FileError(unwritable(path, error)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder to prepare a file or a folder in, and what goes beside it; afterwards all of it lies where `path` is.

    What is there under the same names is replaced, folders too. After an error nothing has changed.

    Raises:
        ESFormerError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ESFormerError(f"{path} cannot be written: {error.strerror}") from None
    with room:
        new, old = Path(room.name, "new"), Path(room.name, "old")
        new.mkdir()
        try:
            yield new
        except (OSError, FileError) as error:  # which name a file that nobody will find
            cause = error.__cause__ if isinstance(error, FileError) else error
            if not isinstance(cause, OSError) or cause.errno not in FULL:
                raise
            raise FileError(unwritable(path, cause)) from cause
        for made in sorted(new.iterdir(), key=lambda made: made.name == path.name):  # what it is all about comes last
            goal = path.with_name(made.name)
            if goal.is_dir():
                goal.replace(old)
            made.replace(goal)
