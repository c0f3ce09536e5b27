"""Which classes a network takes for which, as a picture."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esformer.files import write_bytes
from esformer.text import printable

NUMBERED, NAMED = 30, 60
"""Most classes with numbers in the cells; with their names at the sides."""
CELL, DPI = 0.34, 110
"""Inches of a cell with a number or a name; dots an inch."""
SIDE = (4.5, 18.0)
"""Least and most inches of the matrix. A thousand classes have a dot a cell, up to two thousand fit."""
LENGTH = 24
"""Letters of a class's name, at most."""
FAINT = 1e-3
"""Shares below are as white as none: the colours are logarithmic, for mistakes are few beside what is right."""


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str], title: str, path: Path) -> None:
    """Draw for each class which share of its images was taken for each class; few classes have their numbers, too.

    Args:
        confusion: C, C: so many images of each class (rows) were taken for each class (columns).
        classes: C names.
        title: stands above.
        path: the PNG; it is whole or not there.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    count = len(classes)
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    side = min(max(SIDE[0], count * (CELL if count <= NAMED else 1.1 / DPI)), SIDE[1])
    figure = Figure(figsize=(side + 2.8, side + 1.8), dpi=DPI, layout="constrained")
    ax = figure.add_subplot()
    image = ax.imshow(np.maximum(shares, FAINT), cmap="Blues", norm=LogNorm(FAINT, 1))
    ax.set(xlabel="taken for", ylabel="class")
    if count <= NAMED:
        names = [printable(name) for name in classes]
        names = [name if len(name) <= LENGTH else f"{name[: LENGTH - 1]}…" for name in names]
        ax.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=8, parse_math=False)
        ax.set_yticks(range(count), names, fontsize=8, parse_math=False)
    if count <= NUMBERED:
        _write_numbers(ax, confusion, shares)
    bar = figure.colorbar(image, ax=ax, shrink=0.6, label="share of the class's images")
    bar.set_ticks([FAINT, 0.01, 0.1, 1], labels=["0.1% or less", "1%", "10%", "100%"])
    ax.set_title(printable(title), fontsize=10, parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_bytes(path, picture.getvalue())


def _write_numbers(ax: Any, confusion: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    """How many images, in every cell that has any."""
    size = 8 if confusion.max() < 1000 else 6
    for row, column in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if shares[row, column] > 0.1 else "black"
        ax.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=size, color=colour)
