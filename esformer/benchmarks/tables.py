"""Reading tables of architectures and accuracies, whatever is wrong with them."""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

from esformer.benchmarks.base import BenchmarkError, Entry

Row: TypeAlias = tuple[Any, ...]
"""An architecture, its accuracy in percent, and its parameters or None; text or numbers."""


def read_csv(table: Path, *columns: str) -> Iterator[tuple[str, ...]]:
    """These columns, two or more, of every row of a CSV file, plain or gzipped.

    Raises:
        BenchmarkError: there is no such file, or not all of the columns in all of the rows.
    """
    try:
        with table.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with (gzip.open if zipped else open)(table, "rt", encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines)
            header = next(rows, [])
            if missing := [column for column in columns if column not in header]:
                raise BenchmarkError(f"{table}: has no column {', '.join(missing)}; a table of this benchmark has it")
            places = [header.index(column) for column in columns]
            pick = itemgetter(*places)
            for row in filter(None, rows):  # an empty line is no row
                if len(row) <= max(places):
                    raise BenchmarkError(
                        f"{table}: line {rows.line_num} has {len(row)} columns; the header has {len(header)}"
                    )
                yield pick(row)
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BenchmarkError(f"{table}: cannot be read as a CSV file: {reason}") from error


def entries(table: Path, rows: Iterable[Row], notation: Callable[[str], str]) -> list[Entry]:
    """The entries of a table.

    Args:
        table: for the messages.
        rows: of the table, in its order.
        notation: gives an architecture in the benchmark's own notation; raises BenchmarkError where it is none.

    Raises:
        BenchmarkError: the table is empty, or has an architecture that is none, or twice, or a number that is none.
    """
    result: dict[str, Entry] = {}
    for number, (architecture, accuracy, params) in enumerate(rows, 1):
        where = f"{table}: architecture {number}"
        try:
            architecture = notation(architecture)
        except BenchmarkError as error:
            raise BenchmarkError(f"{where}: {error}") from error
        try:
            entry = Entry(architecture, float(accuracy), None if params is None else int(params))
        except ValueError as error:
            raise BenchmarkError(f"{where}: {accuracy!r} and {params!r} must be an accuracy and a count") from error
        if not 0 <= entry.accuracy <= 100:
            raise BenchmarkError(f"{where}: the accuracy is {accuracy}; it must be in percent")
        if architecture in result:
            raise BenchmarkError(f"{where}: {architecture!r} is there twice; every architecture must be there once")
        result[architecture] = entry
    if not result:
        raise BenchmarkError(f"{table}: holds no architecture")
    return list(result.values())
