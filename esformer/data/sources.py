"""Where images lie: class folders, WebDataset tars or Parquet files, told apart by what a folder holds.

A source gives the bytes of any image at any time, by its number. Nothing is streamed or shuffled in a buffer, as shards
often are: the order of training is a permutation of all images that is the same for every number of processes and goes
on from any step, and that needs random access.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esformer.data.base import (
    ENDINGS,
    LARGEST_FILE,
    THREADS,
    CorruptImage,
    DataError,
    Source,
    is_folder,
    missing_data_error,
)
from esformer.text import printable

SPLITS = ("val", "validation", "test")
"""Names that the validation images may have, the first that is there is taken."""
KINDS = {"folders": "class folders", ".tar": "WebDataset tars", ".parquet": "Parquet files"}
NO_SHARDS = re.compile(r"\.|ILSVRC2012_|n\d{8}\.tar")
"""Begin the names of hidden files, and of ImageNet's own archives, which often lie where they were unpacked."""
ONE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM}
ONE_FILE |= {errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG}
"""Errors that concern a single file, if the folder that it lies in is well."""


def open_both(root: Path) -> tuple[Source, Source]:
    """The training and the validation images of a folder, of one kind and with the same classes.

    Raises:
        DataError: there are none, those of only one split, several kinds, or the classes differ.
    """
    if kind_of(root) == "folders":
        names = [(folder, classes_in(folder)) for folder in (split_folder(root, train) for train in (True, False))]
        for folder, classes in names:
            if not classes:
                raise DataError(f"{folder} has no class folders; each class needs a folder of its images there")
        _agree(*((str(folder), classes) for folder, classes in names))  # before the images are listed
    train, val = open_source(root, train=True), open_source(root, train=False)
    _agree((train.place, train.classes), (val.place, val.classes))
    return train, val


def open_source(root: Path, train: bool) -> Source:
    """The training or the validation images of a folder, whether or not it has the others.

    Raises:
        DataError: there are none, or of several kinds; a class is empty; a shard cannot be read.
    """
    kind = kind_of(root)
    if kind == "folders":
        return Folder(split_folder(root, train))
    paths = find_shards(root, train, kind)
    if not paths:
        there, missing = ("validation", "train") if train else ("training", "val or validation")
        raise DataError(f"{root} has {there} shards but no *{kind} with {missing} in its name or its folder's")
    place = f"{root} ({'training' if train else 'validation'} shards)"
    if kind == ".tar":
        from esformer.data.tars import Tars

        return Tars(paths, place)
    from esformer.data.parquet import Parquet

    return Parquet(paths, place)


def kind_of(root: Path) -> str:
    """What a folder holds: one of KINDS. One that holds nothing is taken for folders, which say what is missing.

    Raises:
        DataError: it holds more than one.
    """
    kinds = ["folders"] if any(classes_in(root / name) for name in ("train", *SPLITS)) else []
    kinds += [kind for kind in (".tar", ".parquet") if any(find_shards(root, split, kind) for split in (True, False))]
    if len(kinds) > 1:
        both = " and ".join(KINDS[kind] for kind in kinds)
        raise DataError(f"{root} holds {both}; it must hold images of one kind, so move the others elsewhere")
    return kinds[0] if kinds else "folders"


def find_shards(root: Path, train: bool, ending: str) -> list[Path]:
    """Files of a split in order: train/* and val/*, or with the split's name in theirs, in the folder or its `data`."""
    for base in (root, root / "data"):
        for split in ("train",) if train else SPLITS:
            if inside := _files(base / split, ending):
                return inside
            word = re.compile(f"(^|[^a-z]){split}", re.IGNORECASE)
            if named := [path for path in _files(base, ending) if word.search(path.name)]:
                return named
    return []


def split_folder(root: Path, train: bool) -> Path:
    """The folder of the training or of the validation images."""
    found = next((root / name for name in (("train",) if train else SPLITS) if is_folder(root / name)), None)
    if found is None:
        raise DataError(
            f"{root} must hold the folders train and val, each with one folder a class,"
            " or shards: .tar or .parquet files with train or val in their names;"
            f" it has none for {'training' if train else 'validation'}"
        )
    return found


def classes_in(folder: Path) -> list[str]:
    """The class folders in a folder, if it is one; hidden ones are none.

    Raises:
        DataError: it cannot be read, or a name is no text, which no checkpoint could keep.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise missing_data_error(folder, error) from None
    for name in names:
        if not is_utf8(name):
            raise DataError(f"{folder} has a class folder whose name is not UTF-8: {name!r}; rename it")
    return names


def is_utf8(name: str) -> bool:
    """Whether a name of a file or folder is text, not bytes that Python stands surrogates for."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Folder:
    """Class folders of images, in the order of their names; folders within them count, hidden files do not.

    Names are kept as one text, not as a list of a million strings, which each worker that counts references to them
    would copy.

    Args:
        folder: its folders are the classes.

    Raises:
        DataError: there are no classes, or classes without images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)
        self.classes = classes_in(folder)
        if not self.classes:
            raise DataError(f"{folder} has no class folders; each class needs a folder of its images there")
        self.names, self.ends, self.labels = _listed(folder, self.classes)
        counts = np.bincount(self.labels, minlength=len(self.classes))
        if not counts.all():
            empty = [repr(self.classes[label]) for label in np.flatnonzero(counts == 0)]
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            raise DataError(f"{folder} has class folders without images: {', '.join(empty[:5])}{more}")

    @cached_property
    def samples(self) -> list[tuple[str, int]]:
        """Path and class number of all images."""
        return [(self._path(index), int(label)) for index, label in enumerate(self.labels)]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return read_file(self._path(index))

    def name_of(self, index: int) -> str:
        return printable(self._path(index))

    def _path(self, index: int) -> str:
        name = self.names[self.ends[index - 1] if index else 0 : self.ends[index]]
        return str(self.folder / self.classes[self.labels[index]] / os.fsdecode(name))


def read_file(path: str) -> bytes:
    """A whole file.

    Raises:
        CorruptImage: it alone cannot be read: a link to nowhere, a folder, a pipe, forbidden, too large.
        DataError: it is gone with its folder, or the file system is.
    """
    name = printable(path)
    try:
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())  # a pipe is opened without waiting for someone to write, and not read
            if not stat.S_ISREG(status.st_mode):
                raise CorruptImage(f"{name} is no file but a device or a pipe")
            if status.st_size > LARGEST_FILE:
                raise CorruptImage(f"{name} has {status.st_size:,} bytes; no image has")
            return file.read()
    except OSError as error:
        if error.errno in ONE_FILE and os.access(Path(path).parent, os.R_OK | os.X_OK):
            raise CorruptImage(f"{name} cannot be read ({os.strerror(error.errno)})") from None
        raise missing_data_error(path, error) from None


_lists: dict[Path, tuple[tuple[int, ...], bytes, NDArray[np.int64], NDArray[np.int64]]] = {}


def _listed(folder: Path, classes: list[str]) -> tuple[bytes, NDArray[np.int64], NDArray[np.int64]]:
    """Names within the class folders, where each ends, and labels.

    A million take seconds, so an unchanged folder is listed once.
    """
    places = [folder / name for name in classes]
    try:
        stamp = tuple(place.stat().st_mtime_ns for place in places)
        if folder in _lists and _lists[folder][0] == stamp:
            return _lists[folder][1:]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(_images_in, places))
    except OSError as error:
        raise missing_data_error(error.filename or folder, error) from None
    ends = np.cumsum([len(name) for names in found for name in names], dtype=np.int64)
    labels = np.repeat(np.arange(len(found)), [len(names) for names in found])
    text = b"".join(name for names in found for name in names)
    if max(stamp) < time.time_ns() - 2_000_000_000:  # what changes within the clock's tick looks unchanged
        _lists[folder] = stamp, text, ends, labels
    return text, ends, labels


def _images_in(folder: Path) -> list[bytes]:
    """Names of the images in a folder and in those within it, in order.

    Raises:
        DataError: links lead to the same folder twice, round and round perhaps.
    """
    names: list[bytes] = []
    seen: dict[str, str] = {}
    todo = [(str(folder), os.path.realpath(folder), b"")]
    while todo:
        place, real, prefix = todo.pop()
        if (first := seen.setdefault(real, place)) != place:
            raise DataError(f"{place} leads to the same folder as {first}: remove the link, or its images count twice")
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = prefix + os.fsencode(entry.name)
                if entry.name.lower().endswith(ENDINGS):
                    names.append(name)
                elif _is_folder(entry):
                    inside = os.path.realpath(entry.path) if entry.is_symlink() else f"{real}/{entry.name}"
                    todo.append((entry.path, inside, name + b"/"))
    return sorted(names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):  # a link to nowhere
            return False
        raise


def _files(folder: Path, ending: str) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.lower().endswith(ending)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise missing_data_error(folder, error) from None
    return [folder / name for name in sorted(names) if not NO_SHARDS.match(name)]


def _agree(*both: tuple[str, Iterable[str]]) -> None:
    (train, first), (val, second) = both
    odd = sorted(set(first) ^ set(second))
    if odd:
        raise DataError(f"{train} and {val} have different classes: {odd[0]!r} is in only one of them")
