"""Hugging Face's Parquet files: a column of images, encoded as files, and one of class numbers.

Parquet is read by row groups, of 100 images as a rule, which are often a single page, so an image costs the reading of
100. From memory that takes one to two milliseconds, as much as decoding it: good where the files stay in the page cache
(150 GB for ImageNet, shared by all processes of a node), slow from a disk or a network. The `datasets` library would
read single images, but copies everything into Arrow files first. Tars need neither.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esformer.training.datasets import CorruptImage, DataError
from esformer.training.shards import Index, PerProcess, open_files
from esformer.training.sources import gone

if TYPE_CHECKING:
    import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

IMAGES, LABELS = ("image", "img"), ("label",)
LARGE = 200
"""Images of a row group above which a warning is due."""
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
            image = self._groups((shard, group))[row].as_py()
        except OSError as error:
            if error.errno:
                raise gone(self.paths[shard], error) from None
            raise CorruptImage(
                f"{self.name_of(index)} cannot be read, nor can its row group ({_line(error)})"
            ) from None
        except ValueError as error:  # pyarrow's
            raise CorruptImage(
                f"{self.name_of(index)} cannot be read, nor can its row group ({_line(error)})"
            ) from None
        if image is None:
            raise CorruptImage(f"{self.name_of(index)} holds no bytes")
        return image

    def name_of(self, index: int) -> str:
        shard, group, row = (int(part[index]) for part in (self.index.shard, self.index.first, self.index.second))
        return f"{self.paths[shard]}: row {row} of row group {group}"

    def _group(self, key: tuple[int, int]) -> Any:
        shard, group = key
        file = self._files(self.paths[shard])
        name = _image_column(self.paths[shard], file)
        column = file.read_row_group(group, columns=[name], use_threads=False).column(0).combine_chunks()
        return column.field("bytes") if "." in name else column


def scan(path: Path) -> list[tuple[int, int, int]]:
    """Row group, row in it and class of each image in a file.

    Raises:
        DataError: it cannot be read, or lacks a column of images or of labels.
    """
    try:
        file = _open(path)
        _image_column(path, file)
        label = next((name for name in LABELS if name in file.schema_arrow.names), None)
        if label is None:
            raise DataError(f"{path} has no column {LABELS[0]!r}; it has {', '.join(file.schema_arrow.names)}")
        labels = file.read(columns=[label], use_threads=False).column(0)
        if not str(labels.type).startswith(("int", "uint")) or labels.null_count:
            raise DataError(f"{path}: the column {label!r} is {labels.type}, or has gaps; it must be class numbers")
        counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    except OSError as error:
        raise gone(path, error) from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is cut short or no Parquet file ({_line(error)}); copy it again") from None
    rows = ((group, row) for group, count in enumerate(counts) for row in range(count))
    return [(group, row, label) for (group, row), label in zip(rows, labels.to_pylist(), strict=True)]


def _open(path: Path) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=False, pre_buffer=False)


def _image_column(path: Path, file: "pq.ParquetFile") -> str:
    for name in IMAGES:
        if name in file.schema_arrow.names:
            kind = file.schema_arrow.field(name).type
            if str(kind) in ("binary", "large_binary"):
                return name
            if str(kind).startswith("struct") and kind.get_field_index("bytes") >= 0:
                return f"{name}.bytes"
            raise DataError(f"{path}: the column {name!r} is {kind}; it must be the bytes of image files")
    raise DataError(f"{path} has no column {IMAGES[0]!r}; it has {', '.join(file.schema_arrow.names)}")


def _pyarrow(place: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise DataError(f"{place} are Parquet files, which pyarrow reads: pip install pyarrow") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
