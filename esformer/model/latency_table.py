"""A table of measured latencies: some layers of a size, and some whole networks, on one device in one runtime.

It is a CSV file below lines that begin with `#`, to be read, shared, and filled on another machine: by a tool, or by
hand. A row without `ms` is yet to be measured. What the table says of networks that are not in it: `latency_fit`.
"""

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from esformer.choices import choices_of, size_of
from esformer.errors import ESFormerError
from esformer.files import FileError, read_text, write_text
from esformer.genotype import Genotype, notation, parse, parse_block
from esformer.model.layers import PARTS, Layer, drawn_layers, drawn_networks
from esformer.space import SearchSpace

FORMAT = "1"
"""The version of the file format, written as `# latency table: 1`."""
NETWORKS = ("reference", "calibration", "held-out")
"""What whole networks are for: `reference`, EfficientFormerV2 of the size, beside which all else is measured;
`calibration`, to tell a network from the sum of its layers; `held-out`, to tell how well others are predicted."""
CALIBRATION = 16
"""Networks for calibration."""
COLUMNS = ("file", "part", "genes", "in", "out", "pixels", "times", "ms")
LARGEST = 2_000_000
"""Bytes of a table; one has about a hundred for each row."""


class LatencyTableError(ESFormerError):
    """A table that cannot be read, or does not say what it is asked; says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is measured, and its latency.

    Args:
        part: of a layer as in `Layer`; of a whole network what it is for, one of `NETWORKS`.
        what: the layer, or the network.
        times: so many of the layer in a row.
        ms: milliseconds of one image; None until it is measured.
    """

    part: str
    what: Layer | Genotype
    times: int = 1
    ms: float | None = None

    @property
    def layer(self) -> Layer | None:
        """The layer, if it is one."""
        return self.what if isinstance(self.what, Layer) else None


@dataclass
class LatencyTable:
    """The rows, and what is known of how they were measured.

    Args:
        space: the name of the search space.
        img_size: height and width of the networks' image in pixels.
        num_classes: of their classifier.
        facts: how they were measured, such as `runtime` and `device`.
        rows: in the order in which they are measured.

    Raises:
        ESFormerError: there is no such space.
    """

    space: str
    img_size: int
    num_classes: int
    facts: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def drawn(
        cls, space: str, img_size: int, num_classes: int, networks: int, facts: Mapping[str, str]
    ) -> "LatencyTable":
        """A table of what is to be measured.

        Args:
            space: the name of the search space.
            img_size: height and width of the networks' image in pixels.
            num_classes: of their classifier.
            networks: how many are held out.
            facts: how they will be measured.
        """
        searched = SearchSpace(choices_of(space))
        rows = [Row("reference", Genotype.shipped(size_of(space.partition("-")[0]).reference))]
        rows += [
            Row(layer.part, layer, times) for layer, times in drawn_layers(searched.choices, img_size, num_classes)
        ]
        rows += [Row("calibration", network) for network in drawn_networks(searched, CALIBRATION, "calibration")]
        rows += [Row("held-out", network) for network in drawn_networks(searched, networks, "held-out")]
        return cls(space, img_size, num_classes, dict(facts), rows)

    @property
    def missing(self) -> list[int]:
        """The numbers of the rows that are yet to be measured."""
        return [number for number, row in enumerate(self.rows) if row.ms is None]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of what was measured: a search by a table that was changed is another search."""
        return hashlib.sha256(self._csv().encode()).hexdigest()[:16]

    def fill(self, number: int, ms: float) -> None:
        """Write the latency of a row.

        Args:
            number: of the row, from 0.
            ms: milliseconds of one image.
        """
        self.rows[number] = replace(self.rows[number], ms=float(f"{ms:.6g}"))

    def name(self, number: int) -> str:
        """The name of a row's file: its number, and for people what it is.

        Args:
            number: of the row, from 0.
        """
        row = self.rows[number]
        if (layer := row.layer) is None:
            return f"{number:03}-{row.part}"
        genes = "" if layer.block is None else f"-{_genes(layer)}"
        times = "" if row.times == 1 else f"-x{row.times}"
        return f"{number:03}-{row.part.replace(' ', '-')}{genes}-{layer.chs}-{layer.out}-{layer.pixels}px{times}"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file; it is replaced as a whole, or not at all.

        Args:
            path: the file.

        Raises:
            FileError: it cannot be written.
        """
        head = {"latency table": FORMAT, "space": self.space, "img_size": self.img_size}
        head |= {"num_classes": self.num_classes, **self.facts}
        write_text(Path(path), "".join(f"# {key}: {value}\n" for key, value in head.items()) + self._csv())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "LatencyTable":
        """The table of a file.

        Args:
            path: the file.

        Raises:
            LatencyTableError: it cannot be read, or is no latency table; names the line.
        """
        try:
            lines = read_text(path, LARGEST).removeprefix("\ufeff").splitlines()  # spreadsheets' byte order mark
        except FileError as error:
            raise LatencyTableError(str(error)) from None
        comments = (line[1:].strip(" ,") for line in lines if line.startswith("#"))  # and their empty cells
        head = dict(comment.partition(": ")[::2] for comment in comments)
        if head.pop("latency table", None) != FORMAT:
            raise LatencyTableError(
                f"{path}: is not a latency table of this version; its first line would be '# latency table: {FORMAT}'"
            )
        try:
            space, img_size, num_classes = head.pop("space"), int(head.pop("img_size")), int(head.pop("num_classes"))
            choices_of(space)
            if not (32 <= img_size <= 100_000 and 1 <= num_classes <= 10**9):
                raise ValueError(f"img_size {img_size} and num_classes {num_classes} cannot be")
        except (KeyError, ValueError) as error:
            raise LatencyTableError(f"{path}: its head must say space, img_size and num_classes: {error}") from None
        table = cls(space, img_size, num_classes, head)
        numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
        if not numbered or tuple(next(csv.reader([numbered[0][1]]))) != COLUMNS:
            raise LatencyTableError(f"{path}: below its head must stand the columns {','.join(COLUMNS)}")
        for number, line in numbered[1:]:
            try:
                (cells,) = csv.reader([line])
                table.rows.append(_row(dict(zip(COLUMNS, cells, strict=True))))
            except (ValueError, csv.Error) as error:
                raise LatencyTableError(f"{path}: line {number} is not a row of a latency table: {error}") from None
        return table

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, row in enumerate(self.rows):
            cells: Iterable[object] = ("", "", "", "")
            genes = notation(row.what) if isinstance(row.what, Genotype) else _genes(row.what)
            if (layer := row.layer) is not None:
                cells = (layer.chs, layer.out, layer.pixels, row.times)
            writer.writerow([self.name(number), row.part, genes, *cells, "" if row.ms is None else f"{row.ms:.6g}"])
        return text.getvalue()


def _genes(layer: Layer) -> str:
    return "" if layer.block is None else ".".join(map(str, layer.block.genes().values()))


def _row(cells: Mapping[str, str]) -> Row:
    """The row of a line.

    Raises:
        ValueError: it is none.
    """
    part, ms = cells["part"], float(cells["ms"]) if cells["ms"].strip() else None
    if ms is not None and not 0 < ms < 1e9:
        raise ValueError(f"ms is {cells['ms'][:30]}; it must be above 0 and finite")
    if part in NETWORKS:
        return Row(part, parse(cells["genes"]), 1, ms)
    if part not in PARTS:
        raise ValueError(f"there is no part {part[:30]!r}; there are {', '.join(PARTS + NETWORKS)}")
    chs, out, pixels, times = (_count(name, cells[name]) for name in ("in", "out", "pixels", "times"))
    block = parse_block(cells["genes"]) if "block" in part else None
    if block is not None and block.out != out:
        raise ValueError(f"out is {out}, and {block.out} in its genes")
    if times > 1 and (block is None or chs != out):
        raise ValueError(f"it stands {times} times in a row, which it cannot")
    return Row(part, Layer(part, chs, out, pixels, block), times, ms)


def _count(name: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text.strip()):
        raise ValueError(f"{name} is {text[:30]!r}; it must be a whole number above 0")
    return int(text)
