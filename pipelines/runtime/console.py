"""Tables for people, on a terminal and in logs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

from esformer.text import number

WIDE, NARROW = 200, 80
"""Characters of a line in a log, at most: of a table's row, and of a summary where words are not longer."""

SHARES = ("top1", "top5", "ema_top1", "ema_top5", "precision", "calibration_error", "waiting_for_images")
"""From 0 to 1; people read them in percent."""

LABELS = {"top1": "top-1", "top5": "top-5"}
LABELS |= {f"ema_{key}": f"{words}, averaged weights" for key, words in LABELS.items()}
"""What people call a value of a summary, where its key says too little."""


def console() -> Console:
    """As wide as the terminal, where there is one; what is printed is text, though paths may look like markup."""
    return Console(width=None if sys.stdout.isatty() else WIDE, markup=False)


def show_rows(rows: Sequence[Sequence[str]], **settings: Any) -> None:
    """Print a table.

    Args:
        rows: its head, and what is below.
        settings: of Rich's `Table`.
    """
    head, *body = rows
    table = Table(*head, **settings)
    for row in body:
        table.add_row(*row)
    console().print(table)


def label(key: str) -> str:
    """What people call the value of a key."""
    return LABELS.get(key, key.replace("_", " "))


def readable(key: str, value: Any) -> str:
    """A value of a summary as people read it.

    Args:
        key: what it is; SHARES are shown in percent.
        value: a number, a text, several by their names, or a list, which takes a line for each.
    """
    if key in SHARES and isinstance(value, int | float):
        return f"{100 * value:.2f} %"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {readable(name, one)}" for name, one in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list) else number(value)


def show(summary: Mapping[str, Any]) -> None:
    """Print a summary as a table."""
    table = Table(Column(min_width=max(len(label(key)) for key in summary)), Column(), show_header=False)
    for key, value in summary.items():
        table.add_row(label(key), readable(key, value))
    paper = console()
    whole = Measurement.get(paper, paper.options, table).minimum  # with no word broken, so with paths to copy
    paper.print(table, width=None if sys.stdout.isatty() else max(NARROW, whole))
