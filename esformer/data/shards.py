"""What all shards have in common: an index of their images, made once and kept, and files that are opened when read."""

import hashlib
import json
import logging
import os
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from esformer.data.base import THREADS, DataError, missing_data_error
from esformer.files import FileError, write_bytes

VERSION = 2
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
        scan: gives of a shard a row for each image, N, 3: two numbers that say where it is, and its class. The numbers
            are not negative, and together at most the bytes of the shard.

    Raises:
        DataError: a shard cannot be read, or `scan` refuses it; no shard has an image, or a class has none.
    """

    def __init__(self, paths: list[Path], scan: Callable[[Path], Table], place: str) -> None:
        try:
            stats = [path.stat() for path in paths]
        except OSError as error:
            raise missing_data_error(error.filename, error) from None
        if odd := next((path for path, s in zip(paths, stats, strict=True) if not stat.S_ISREG(s.st_mode)), None):
            raise DataError(f"{odd} is no file; move it elsewhere")
        sizes = np.array([status.st_size for status in stats], dtype=np.int64)
        files = [(path.name, status.st_size, status.st_mtime_ns) for path, status in zip(paths, stats, strict=True)]
        stamp, places = json.dumps([VERSION, files]), _places(paths)
        kept = (_load(place, stamp) for place in places)
        table = next((table for table in kept if table is not None and _fits(table, sizes)), None)
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


def _scan(paths: list[Path], scan: Callable[[Path], Table]) -> Table:
    """Rows shard, where, where, class; in the order of the shards."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(scan, paths))
    shard = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
    return np.ascontiguousarray(np.vstack([shard, np.concatenate(found).T]))  # 4, N


def _check(table: Table, place: str) -> None:
    classes = np.unique(table[3])
    if not len(classes):
        raise DataError(f"{place} hold no images with labels")
    first, last = int(classes[0]), int(classes[-1])
    if first < 0:
        raise DataError(f"{place}: images have the label {first}, as test images without labels do; 0 is the first")
    if last >= len(classes):
        missing = np.setdiff1d(np.arange(len(classes)), classes)[0]
        raise DataError(
            f"{place}: labels are from {first} to {last}, but no image has the label {missing};"
            " classes are counted from 0, and each needs images"
        )


def _fits(table: Table, sizes: Table) -> bool:
    """Whether the index of a file can be one of shards of such sizes; whoever wrote it, nothing is read beyond them."""
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[0] != 4:
        return False
    shard, first, second, _ = table
    if not table.size or table.min() < 0 or (np.diff(shard) < 0).any() or shard[-1] >= len(sizes):
        return False
    if (first > sizes[shard]).any() or (second > sizes[shard] - first).any():
        return False
    try:
        _check(table, "")
    except DataError:
        return False
    return True


def _places(paths: list[Path]) -> list[Path]:
    """Files in which the index may be, beside the shards first."""
    names = os.fsencode("\n".join(path.name for path in paths))
    beside = paths[0].parent / f".esformer-index-{hashlib.sha256(names).hexdigest()[:16]}.safetensors"
    home = Path(os.environ.get("HOME") or tempfile.gettempdir())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "esformer"
    where = hashlib.sha256(os.fsencode(paths[0].parent.resolve()) + b"\n" + names).hexdigest()[:16]
    return [beside, cache / f"index-{where}.safetensors"]


def _load(place: Path, stamp: str) -> Table | None:
    """An index that was kept of the same shards, and is as it was written."""
    try:
        if place.is_file():
            with safe_open(place, "numpy") as kept:
                table: Table = kept.get_tensor("table")
                if (kept.metadata() or {}).get("digest") == _digest(stamp, table):
                    return table
    except (OSError, SafetensorError, TypeError):  # of a type that numpy lacks
        pass  # not ours: it is made anew
    return None


def _digest(stamp: str, table: Table) -> str:
    return hashlib.sha256(stamp.encode() + table.tobytes()).hexdigest()


def _keep(places: list[Path], stamp: str, table: Table) -> None:
    """Write the index to the first place that takes it; many processes do this at a time."""
    content = save({"table": table}, {"digest": _digest(stamp, table)})
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, content)
            return
        except (OSError, FileError) as error:
            logger.debug("no index at %s: %s", place, error)
    logger.warning("the index of %s could be written nowhere; it is made anew each time", places[0].parent)
