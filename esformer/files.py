"""Files: those of a run and those that people hand in are read whatever has become of them, and written whole or not.

Nothing in a file is executed, and none can hang a process or exhaust its memory: pipes and devices are not read, sizes
and depths are bounded, and YAML may have no aliases, with which a small file describes an enormous value.
"""

import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import yaml

from esformer.errors import ESFormerError, first_line

LARGEST = 250_000
"""Bytes of a file that is read as a whole; what we write has a few thousand."""
DEEPEST = 20
"""Lists and mappings within each other; what we write has 6."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exceeded quota and a limit of file sizes."""

StrPath = str | os.PathLike[str]


class FileError(ESFormerError):
    """A file that cannot be read; names it and says why."""


class ContentError(FileError):
    """A file, or a text, that was read and does not hold what it should."""


def open_file(path: StrPath) -> IO[bytes]:
    """Open an ordinary file to read it; anything else, such as a pipe that nobody writes to, is refused at once."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise FileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(f"{path}: is not a file but a directory or a device")
    return os.fdopen(descriptor, "rb")


def read_text(path: StrPath, largest: int = LARGEST) -> str:
    """The text of a small file in UTF-8."""
    with open_file(path) as file:
        try:
            content = file.read(largest + 1)
        except OSError as error:
            raise FileError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > largest:
        raise ContentError(f"{path}: holds more than {largest:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ContentError(f"{path}: is not text in UTF-8: {error}") from None


def read_yaml(path: StrPath, plain: bool = False) -> Any:
    """What a YAML file holds; see `parse_yaml`."""
    text = read_text(path)
    try:
        return parse_yaml(text, plain)
    except ContentError as error:
        raise ContentError(f"{path}: {error}") from None


def read_json(path: StrPath) -> Any:
    """What a JSON file holds; see `parse_json`."""
    text = read_text(path)
    try:
        return parse_json(text)
    except ContentError as error:
        raise ContentError(f"{path}: {error}") from None


def parse_yaml(text: str, plain: bool = False) -> Any:
    """A text in YAML as lists, mappings of words, and scalars. Of a mapping no key may stand twice.

    Args:
        text: the YAML.
        plain: leave every scalar the text that it is, for whoever knows its type.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader if plain else _TypedLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ContentError(f"is not plain YAML: {line}{error.problem}") from None
    except ContentError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ContentError(f"is not plain YAML: {first_line(error)}") from None


def parse_json(text: str | bytes) -> Any:
    """A text in JSON. All its numbers are finite, and of a mapping no key stands twice."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ContentError("is nested too deeply") from None
    except ValueError as error:  # bytes that are no text, too
        if isinstance(error, ContentError):
            raise
        raise ContentError(f"is not JSON: {first_line(error)}") from None
    _check_values(value, DEEPEST)
    return value


def whole_lines(path: StrPath, longest: int) -> Iterator[tuple[int, bytes, int]]:
    """The lines of a file to which lines are appended: their numbers, what they hold, and the byte after each.

    A last line without its end, which a kill or a crash of the machine tore off, is left out however long it is.

    Args:
        path: the file.
        longest: bytes of a line; a longer one, which other lines follow, is none of ours.
    """
    with open_file(path) as file:
        number = end = 0
        while line := file.readline(longest):
            number, end = number + 1, end + len(line)
            if not line.endswith(b"\n"):
                if any(b"\n" in block for block in iter(partial(file.read, 1 << 20), b"")):
                    raise ContentError(f"{path}: line {number} is longer than {longest:,} bytes")
                return
            yield number, line, end


def check_folder(path: Path, give: str) -> None:
    """Refuse what is no folder.

    Args:
        path: what was given.
        give: what would be right.

    Raises:
        FileError: it is a file, or not there.
    """
    if not path.is_dir():
        raise FileError(f"{path} is {'a file' if path.exists() else 'not there'}; give {give}")


def place_of(file: IO[Any], path: Path) -> Path | None:
    """Where an open file lies now that was opened at `path`: there, elsewhere, or nowhere any more."""
    ours = os.fstat(file.fileno())
    try:
        if os.path.samestat(ours, path.stat()):
            return path
    except OSError:
        pass
    if ours.st_nlink == 0:
        return None
    try:
        return Path(f"/proc/self/fd/{file.fileno()}").readlink()
    except OSError:  # not on Linux
        return Path("another folder", path.name)


def unwritable(path: Path, error: OSError) -> str:
    """That a file or folder cannot be written, and why; names it, as far as a line holds the name."""
    text = str(path)
    return f"{text if len(text) <= 300 else f'{text[:60]}...{text[-20:]}'} cannot be written: {error.strerror}"


def _check_values(value: Any, depth: int) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ContentError(f"has a number that is {value}")
    if not isinstance(value, dict | list):
        return
    if not depth:
        raise ContentError("is nested too deeply")
    for child in value.values() if isinstance(value, dict) else value:
        _check_values(child, depth - 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(content := dict(pairs)) != len(pairs):
        _check_keys([key for key, _ in pairs])
    return content


def _check_keys(keys: list[Any]) -> None:
    seen = set()
    for key in keys:
        if not isinstance(key, str):
            raise ContentError(f"has a key {str(key)[:60]}; keys are words")
        if key in seen:
            raise ContentError(f"has the key {key[:60]!r} twice in one mapping")
        seen.add(key)


class _Strict(yaml.SafeLoader):
    """No aliases, no tags, no depths, no key twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise ContentError("uses YAML aliases; write every value out")
        event = self.peek_event()  # type: ignore[no-untyped-call]  # its stub has no types
        if getattr(event, "tag", None) is not None:
            raise ContentError("uses YAML tags; write plain values")
        self.depth += 1
        if self.depth > DEEPEST:
            raise ContentError("is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        _check_keys([self.construct_object(key, deep=True) for key, _ in node.value])
        return super().construct_mapping(node, deep)


class _TypedLoader(_Strict):
    """Scalars by YAML's rules, but dates stay text, and a `<<` merge key is a key like others."""


class _PlainLoader(_Strict):
    """Scalars as they are written."""


_LEFT_OUT = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:timestamp")
_TypedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in _LEFT_OUT]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.yaml_implicit_resolvers = {}


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a kill at any moment leaves the old file or the new one, never half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview, durable: bool = False, previous: Path | None = None) -> None:
    """The same for any other file; any number of processes may write the same one.

    Args:
        path: the file.
        content: all that it is to hold.
        durable: wait until it is on the disk, so that a crash of the machine leaves one of the two as well.
        previous: where the old file is kept.

    Raises:
        FileError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # not the pid: nodes and containers share those
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # a disk that is full needs the room
        raise FileError(unwritable(path, error)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
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
