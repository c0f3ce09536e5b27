"""What all shards have in common: an index of their images, made once and kept, and files that are opened when read."""

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from esformer.training.datasets import DataError
from esformer.training.sources import THREADS, gone

VERSION = 1
"""Of the index; another is made anew."""

logger = logging.getLogger(__name__)

T = TypeVar("T")
Table = NDArray[np.int64]


class Index:
    """Where each image of some shards is, and its class.

    Made by looking at every shard once, which takes a minute or two for ImageNet, and kept in a file beside the
    shards, or in the user's cache folder where that cannot be written. Shards with other names, sizes or times are
    indexed anew.

    Args:
        paths: the shards.
        scan: gives of a shard a row for each image: two numbers that say where it is, and its class.

    Raises:
        DataError: a shard cannot be read, or `scan` refuses it; no shard has an image, or a class has none.
    """

    def __init__(self, paths: list[Path], scan: Callable[[Path], list[tuple[int, int, int]]], place: str) -> None:
        try:
            stats = [(path.name, path.stat()) for path in paths]
        except OSError as error:
            raise gone(error.filename, error) from None
        stamp = json.dumps([VERSION, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]])
        places = _places(paths)
        table = next((table for place in places if (table := _load(place, stamp)) is not None), None)
        if table is None:
            logger.info("indexing %s, once: %d files", place, len(paths))
            table = _scan(paths, scan)
            _check(table, place)
            _keep(places, stamp, table)
        self.shard, self.first, self.second, self.label = table


class PerProcess(Generic[T]):
    """The things used last, made when first asked for and never shared with a forked or spawned process.

    Args:
        make: makes one from its key.
        most: how many are kept.
    """

    def __init__(self, make: Callable[[Any], T], most: int) -> None:
        self.make, self.most = make, most
        self._pid = os.getpid()
        self._made: OrderedDict[Any, T] = OrderedDict()

    def __call__(self, key: Any) -> T:
        if self._pid != os.getpid():
            self._pid, self._made = os.getpid(), OrderedDict()
        if key not in self._made:
            self._made[key] = self.make(key)
            if len(self._made) > self.most:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": OrderedDict()}


def open_files() -> int:
    """How many shards of a split a process keeps open: a quarter of the files that it may."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if limit == resource.RLIM_INFINITY else max(8, min(4096, limit // 4))


def _scan(paths: list[Path], scan: Callable[[Path], list[tuple[int, int, int]]]) -> Table:
    """Rows shard, where, where, class; in the order of the shards."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda path: np.array(scan(path), dtype=np.int64).reshape(-1, 3), paths))
    shard = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
    return np.vstack([shard, np.concatenate(found).T])  # 4, N


def _check(table: Table, place: str) -> None:
    classes = np.unique(table[3])
    if not len(classes):
        raise DataError(f"{place} hold no images with labels")
    if classes[0] < 0:
        raise DataError(
            f"{place}: images have the label {classes[0]}, as test images without labels do; 0 is the first"
        )
    missing = np.setdiff1d(np.arange(min(classes[-1] + 1, len(classes) + 1)), classes)
    if len(missing):
        raise DataError(
            f"{place}: labels are from {classes[0]} to {classes[-1]}, but no image has the label {missing[0]};"
            " classes are counted from 0, and each needs images"
        )


def _places(paths: list[Path]) -> list[Path]:
    """Files in which the index may be, beside the shards first."""
    names = "\n".join(path.name for path in paths)
    beside = paths[0].parent / f".esformer-index-{hashlib.sha256(names.encode()).hexdigest()[:16]}.npz"
    home = Path(os.environ.get("HOME") or tempfile.gettempdir())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "esformer"
    where = hashlib.sha256(f"{paths[0].parent.resolve()}\n{names}".encode()).hexdigest()[:16]
    return [beside, cache / f"index-{where}.npz"]


def _load(place: Path, stamp: str) -> Table | None:
    try:
        with np.load(place, allow_pickle=False) as kept:
            if str(kept["stamp"]) == stamp and kept["table"].shape[0] == 4:
                return kept["table"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none, or not ours: it is made anew
    return None


def _keep(places: list[Path], stamp: str, table: Table) -> None:
    """Write the index to the first place that takes it, whole or not at all: many processes do this at a time."""
    for place in places:
        temporary = None
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".esformer-", delete=False) as file:
                temporary = Path(file.name)
                np.savez(file, stamp=np.array(stamp), table=table)
            temporary.chmod(0o644)
            temporary.replace(place)
            return
        except OSError as error:
            logger.debug("no index at %s: %s", place, error)
            if temporary:
                temporary.unlink(missing_ok=True)
    logger.warning("the index of %s could be written nowhere; it is made anew each time", places[0].parent)
