"""WebDataset tars: the files of an image follow each other and share a name, as in 0001.jpg, 0001.cls.

Read with tarfile, for the format is no more than that. The webdataset package streams, and its sibling `wids`, which
reads at random, wants index files that few shards have and maps shards into memory, where a file system that goes away
kills the process instead of raising an error.
"""

import json
import os
import tarfile
from pathlib import Path

from esformer.training.datasets import DataError
from esformer.training.shards import Index, PerProcess, open_files
from esformer.training.sources import ENDINGS, gone

BLOCK = 512
"""Bytes of a file's header, just before it."""


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
            return f"{path}: {tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name}"
        except (DataError, tarfile.HeaderError):
            return f"{path}: at byte {offset}"

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes, or as many as there are; a call may give fewer than asked for, and 2 GB at most."""
        parts: list[bytes] = []
        try:
            while size > 0 and (part := os.pread(self._files(path).number, size, offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        except OSError as error:
            raise gone(path, error) from None
        return b"".join(parts)


class _File:
    """An open file, closed when it is dropped."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def scan(path: Path) -> list[tuple[int, int, int]]:
    """Byte, size and class of each image in a tar, from its headers and labels alone.

    Raises:
        DataError: it cannot be read to its end, or an image has no label that is a number.
    """
    rows: list[tuple[int, int, int]] = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            number, key, sample = file.fileno(), "", dict[str, tarfile.TarInfo]()
            for member in tar:
                head, name = os.path.split(member.name)
                base, _, ending = name.partition(".")
                if not member.isreg() or not base or not ending:
                    continue
                if (head + "/" + base) != key:
                    rows += _row(path, number, sample)
                    key, sample = head + "/" + base, {}
                sample[ending.lower()] = member
            rows += _row(path, number, sample)
            end = os.pread(number, BLOCK, tar.offset)
        if end.strip(b"\0") or not end:  # tarfile stops without a word where a header is none
            raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except tarfile.TarError as error:
        raise DataError(f"{path} is cut short or no tar ({error}); copy it again") from None
    except OSError as error:
        raise gone(path, error) from None
    return rows


def _row(path: Path, number: int, sample: dict[str, tarfile.TarInfo]) -> list[tuple[int, int, int]]:
    """The row of a sample, if it has an image."""
    image = next((member for ending, member in sample.items() if f".{ending}" in ENDINGS), None)
    if image is None:
        return []
    for ending in ("cls", "json"):
        if member := sample.get(ending):
            text = os.pread(number, member.size, member.offset_data)
            try:
                label = json.loads(text)["label"] if ending == "json" else int(text)
                return [(image.offset_data, image.size, int(label))]
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{path}: {member.name} holds no class number but {text[:40]!r};"
                    ' .cls is a number, .json has one as "label"'
                ) from None
    raise DataError(
        f"{path}: {image.name} has no label; it needs a file with the same name and .cls or .json beside it"
    )
