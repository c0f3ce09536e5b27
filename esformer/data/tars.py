"""WebDataset tars: the files of an image follow each other and share a name, as in 0001.jpg, 0001.cls.

Read with tarfile, for the format is no more than that. The webdataset package streams, and its sibling `wids`, which
reads at random, wants index files that few shards have and maps shards into memory, where a file system that goes away
kills the process instead of raising an error.
"""

import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np

from esformer.data.base import ENDINGS, LARGEST_FILE, MOST_CLASSES, DataError, missing_data_error
from esformer.data.shards import Index, PerProcess, Table, open_files
from esformer.text import printable

BLOCK = 512
"""Bytes of a file's header, just before it."""
LARGEST_LABEL = 2**24
"""Bytes of a file with a label: a .json may describe its image at length."""


class Tars:
    """Images of WebDataset tars, in the order in which they lie there.

    Args:
        paths: the tars.
        place: where they are, for messages.

    Raises:
        DataError: a tar cannot be read, or an image has no label.
    """

    def __init__(self, paths: list[Path], place: str) -> None:
        self.paths, self.place = paths, place
        self.index = Index(paths, scan, place)
        self.labels = self.index.label
        self.classes = [str(label) for label in range(int(self.labels.max()) + 1)]
        self._files = PerProcess(_File, most=open_files())

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        path = self.paths[self.index.shard[index]]
        offset, size = int(self.index.first[index]), int(self.index.second[index])
        found = self._read(path, offset, size)
        if len(found) < size:
            raise DataError(f"{path} ends before byte {offset + size}; it was longer when it was indexed")
        return found

    def name_of(self, index: int) -> str:
        path, offset = self.paths[self.index.shard[index]], int(self.index.first[index])
        try:
            header = self._read(path, offset - BLOCK, BLOCK)
            name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (DataError, tarfile.HeaderError):
            name = f"at byte {offset}"
        return printable(f"{path}: {name}")

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        try:
            return read_at(self._files(path).number, offset, size)
        except OSError as error:
            raise missing_data_error(path, error) from None


def read_at(number: int, offset: int, size: int) -> bytes:
    """`size` bytes of a file, or as many as there are; a call may give fewer than asked for, and 2 GB at most."""
    parts: list[bytes] = []
    while size > 0 and (part := os.pread(number, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


class _File:
    """An open file, closed when it is dropped."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _Tar(io.BufferedReader):
    """A file that is asked for no more bytes than it has.

    tarfile reads as many as a header says, and Python sets memory for them aside first: 8 GB for a broken header.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def scan(path: Path) -> Table:
    """Byte, size and class of each image in a tar, from its headers and labels alone: N, 3.

    Raises:
        DataError: it cannot be read to its end, or an image has no label that is a number.
    """
    rows: list[tuple[int, int, int]] = []
    try:
        with _Tar(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            number, key, sample = file.fileno(), "", dict[str, tarfile.TarInfo]()
            length, before = os.fstat(number).st_size, -1
            for member in tar:
                end = member.offset_data + (member.size if member.isreg() else 0)
                if not before < member.offset < member.offset_data <= end <= length:  # else it could go round and round
                    raise tarfile.ReadError(f"a file of {member.size} bytes at byte {member.offset_data}")
                before = member.offset
                head, name = os.path.split(member.name)
                base, _, ending = name.partition(".")
                if not base or not ending or member.isdir():
                    continue
                if (head + "/" + base) != key:
                    rows += _row(path, number, sample)
                    key, sample = head + "/" + base, {}
                if ending.lower() in sample:
                    raise DataError(f"{path}: {member.name} is there twice; each image needs a name of its own")
                sample[ending.lower()] = member
            rows += _row(path, number, sample)
            end_block = os.pread(number, BLOCK, tar.offset)
        if end_block.strip(b"\0") or not end_block:  # tarfile stops without a word where a header is none
            raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except DataError:
        raise
    except OSError as error:
        raise missing_data_error(path, error) from None
    except Exception as error:  # tarfile raises whatever a broken header leads it to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is cut short or no tar ({reason}); copy it again") from None
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _row(path: Path, number: int, sample: dict[str, tarfile.TarInfo]) -> list[tuple[int, int, int]]:
    """The row of a sample, if it has an image."""
    image = next((member for ending, member in sample.items() if f".{ending}" in ENDINGS), None)
    if image is None:
        return []
    for ending in ("cls", "json"):
        if member := sample.get(ending):
            return [(*_place(path, image, LARGEST_FILE), _label(path, number, member))]
    raise DataError(
        f"{path}: {image.name} has no label; it needs a file with the same name and .cls or .json beside it"
    )


def _place(path: Path, member: tarfile.TarInfo, largest: int) -> tuple[int, int]:
    """Byte and size of a file in a tar.

    Raises:
        DataError: it does not lie there as it is.
    """
    if not member.isreg() or member.issparse():
        raise DataError(f"{path}: {member.name} is a link, or sparse; a shard must hold the files themselves")
    if member.size > largest:
        raise DataError(f"{path}: {member.name} has {member.size:,} bytes; it must have at most {largest:,}")
    return member.offset_data, member.size


def _label(path: Path, number: int, member: tarfile.TarInfo) -> int:
    offset, size = _place(path, member, LARGEST_LABEL)
    text, label = read_at(number, offset, size), None
    try:
        if member.name.lower().endswith(".json"):
            label = json.loads(text)["label"]
        elif re.fullmatch(rb"\s*[+-]?\d+\s*", text):
            label = int(text)
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    if type(label) is not int or abs(label) >= MOST_CLASSES:
        raise DataError(
            f"{path}: {member.name} holds no class number but {text[:40]!r};"
            f' .cls is a number below {MOST_CLASSES:,}, .json has one as "label"'
        )
    return label
