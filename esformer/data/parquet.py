"""Hugging Face's Parquet files: a column of images, encoded as files, and one of class numbers.

Parquet is read by row groups, of 100 images as a rule, which are often a single page, so an image costs the reading of
100. From memory that takes one to two milliseconds, as much as decoding it: good where the files stay in the page cache
(150 GB for ImageNet, shared by all processes of a node), slow from a disk or a network. The `datasets` library would
read single images, but copies everything into Arrow files first. Tars need neither.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esformer.data.base import LARGEST_FILE, MOST_CLASSES, CorruptImage, DataError, missing_data_error
from esformer.data.shards import Index, PerProcess, Table, open_files
from esformer.text import printable

if TYPE_CHECKING:
    import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

IMAGES, LABELS = ("image", "img"), ("label",)
LARGE = 200
"""Images of a row group above which a warning is due."""
LARGEST_GROUP = 2**31
"""Bytes of the images of a row group; it is read as a whole, by each worker."""
GROUPS = 2
"""Row groups that are kept, so that images read in order cost one reading."""


class Parquet:
    """Images of Parquet files, in the order in which they lie there.

    Args:
        paths: the files.
        place: where they are, for messages.

    Raises:
        DataError: pyarrow is not installed; a file cannot be read, or lacks a column.
    """

    def __init__(self, paths: list[Path], place: str) -> None:
        _pyarrow(place)
        self.paths, self.place = paths, place
        self.index = Index(paths, scan, place)
        self.labels = self.index.label
        self.classes = [str(label) for label in range(int(self.labels.max()) + 1)]
        rows = int(self.index.second.max()) + 1
        if rows > LARGE:
            logger.warning(
                "%s: an image costs reading its row group, of up to %d images; WebDataset tars would be faster",
                place,
                rows,
            )
        self._files = PerProcess(_open, most=open_files())
        self._groups = PerProcess(self._group, most=GROUPS)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        shard, group, row = (int(part[index]) for part in (self.index.shard, self.index.first, self.index.second))
        try:
            image: bytes | None = self._groups((shard, group))[row].as_py()
        except Exception as error:  # pyarrow raises whatever broken pages lead it to
            if isinstance(error, OSError) and error.errno:
                raise missing_data_error(self.paths[shard], error) from None
            raise CorruptImage(
                f"{self.name_of(index)} cannot be read, nor can its row group ({_line(error)})"
            ) from None
        if image is None:
            raise CorruptImage(f"{self.name_of(index)} holds no bytes")
        if len(image) > LARGEST_FILE:
            raise CorruptImage(
                f"{self.name_of(index)} has {len(image):,} bytes, more than {LARGEST_FILE:,}: no image has"
            )
        return image

    def name_of(self, index: int) -> str:
        shard, group, row = (int(part[index]) for part in (self.index.shard, self.index.first, self.index.second))
        return printable(f"{self.paths[shard]}: row {row} of row group {group}")

    def _group(self, key: tuple[int, int]) -> Any:
        shard, group = key
        file = self._files(self.paths[shard])
        name = _image_column(self.paths[shard], file)
        column = file.read_row_group(group, columns=[name], use_threads=False).column(0).combine_chunks()
        return column.field("bytes") if "." in name else column


def scan(path: Path) -> Table:
    """Row group, row in it and class of each image in a file: N, 3.

    Raises:
        DataError: it cannot be read, or lacks a column of images or of labels.
    """
    try:
        file = _open(path)
        images = _image_column(path, file)
        names = file.schema_arrow.names
        label = next((name for name in LABELS if name in names), None)
        if label is None:
            raise DataError(f"{path} has no column {LABELS[0]!r}; it has {', '.join(names)}")
        counts = _row_counts(path, file, images)
        column = file.read(columns=[label], use_threads=False).column(0)
        if not str(column.type).startswith(("int", "uint")) or column.null_count:
            raise DataError(f"{path}: the column {label!r} is {column.type}, or has gaps; it must be class numbers")
        labels = column.to_numpy()
        if len(labels) != counts.sum():
            raise ValueError(f"{len(labels)} labels of {counts.sum()} rows")
        if len(labels) and labels.max() >= MOST_CLASSES:
            raise DataError(
                f"{path}: the column {label!r} has the number {labels.max()}, but classes are numbered from 0 to"
                f" {MOST_CLASSES - 1:,}"
            )
    except DataError:
        raise
    except Exception as error:  # pyarrow raises whatever a broken file leads it to
        if isinstance(error, OSError) and error.errno:
            raise missing_data_error(path, error) from None
        raise DataError(f"{path} is cut short or no Parquet file ({_line(error)}); copy it again") from None
    groups = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([groups, rows, labels.astype(np.int64)], axis=1)


def _row_counts(path: Path, file: "pq.ParquetFile", images: str) -> Table:
    """Rows of each row group, if they are not more than a file of its size can hold.

    Raises:
        DataError: they are, or a row group is too large to be read.
    """
    size, groups = path.stat().st_size, range(file.metadata.num_row_groups)
    counts = [file.metadata.row_group(group).num_rows for group in groups]
    if min(counts, default=0) < 0 or sum(counts) > size:
        raise DataError(f"{path} says that it holds {sum(counts):,} images in {size:,} bytes; copy it again")
    for group in groups:
        chunks = [file.metadata.row_group(group).column(number) for number in range(file.metadata.num_columns)]
        length = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == images)
        if length > LARGEST_GROUP:
            raise DataError(
                f"{path}: row group {group} has {length:,} bytes of images, more than {LARGEST_GROUP:,}, and is read as"
                " a whole for each image; write it again with row_group_size=100"
            )
    return np.array(counts, dtype=np.int64)


def _open(path: Path) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=False, pre_buffer=False, page_checksum_verification=True)


def _image_column(path: Path, file: "pq.ParquetFile") -> str:
    for name in IMAGES:
        if name in file.schema_arrow.names:
            kind = file.schema_arrow.field(name).type
            if str(kind) in ("binary", "large_binary"):
                return name
            part = kind.get_field_index("bytes") if str(kind).startswith("struct") else -1
            if part >= 0 and str(kind.field(part).type) in ("binary", "large_binary"):
                return f"{name}.bytes"
            raise DataError(f"{path}: the column {name!r} is {kind}; it must be the bytes of image files")
    raise DataError(f"{path} has no column {IMAGES[0]!r}; it has {', '.join(file.schema_arrow.names)}")


def _pyarrow(place: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise DataError(f"{place} are Parquet files, which pyarrow reads: pip install pyarrow") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
