"""The runs of a folder as a table."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from callbacks.progress import duration
from esformer.errors import ESFormerError
from esformer.files import read_text
from esformer.text import number, printable
from pipelines.runtime.console import console, show_rows
from pipelines.runtime.record import COMMANDS, Record, is_locked, read_run

TITLE = "# python -m pipelines."
"""How `config.yaml` begins in the folder of a command."""
HEAD = ("run", "command", "state", "progress", "score", "top-1", "changed")


def list_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Print a table of the runs below some folders, the one that changed last first, and how to go on with each.

    Args:
        folders: where to look.
    """
    found = {path: kind for folder in folders for path, kind in _runs(folder)}
    rows = [_row(path, kind) for path, kind in found.items()]
    rows.sort(key=lambda row: row["age"])
    if not rows:
        console().print(f"no runs in {', '.join(map(str, folders))}")
        return rows
    cells = [[*(printable(str(row[name])) for name in HEAD[:-1]), f"{duration(row['age'])} ago"] for row in rows]
    show_rows([HEAD, *cells])
    for row in rows:
        if row["state"] == "stopped" and row["go_on"]:
            console().print(f"{printable(row['run'])} goes on with: {row['go_on']}", soft_wrap=True)
        for remark in row["remarks"]:
            console().print(f"{printable(row['run'])} is damaged: {printable(remark)}", soft_wrap=True)
    return rows


def _runs(folder: Path) -> Iterator[tuple[Path, str]]:
    """The runs in a folder and below, and the commands that made them; what lies within a run is part of it."""
    for place, below, files in os.walk(folder):
        below.sort()
        if "config.yaml" not in files:
            continue
        try:
            title = read_text(Path(place) / "config.yaml").partition("\n")[0]
        except (ESFormerError, OSError):
            continue
        if title.startswith(TITLE):
            below.clear()
            yield Path(place), title.removeprefix(TITLE).partition(" ")[0]


def _row(path: Path, kind: str) -> dict[str, Any]:
    """What the table says of a run."""
    newest = max((file.stat().st_mtime for file in path.iterdir() if file.is_file()), default=path.stat().st_mtime)
    row: dict[str, Any] = dict.fromkeys(HEAD, "") | {"run": str(path), "command": kind, "go_on": None, "remarks": []}
    row["age"] = max(0.0, time.time() - newest)
    if kind not in COMMANDS:
        return row | {"state": "running" if is_locked(path / ".lock") else ""}
    try:
        run = read_run(path)
        row |= {"state": run.state, "progress": _progress(run), "score": _score(run), "top-1": _top1(run)}
    except Exception as error:  # whatever a damaged folder holds: the others are listed all the same
        return row | {"state": "unreadable", "remarks": [str(error) or type(error).__name__]}
    return row | {"go_on": run.go_on, "remarks": run.remarks}


def _progress(run: Record) -> str:
    """How far a run that is not finished is: epochs, or evaluations or minutes of the search."""
    if run.state == "finished":
        return ""
    if run.epochs:
        return f"epoch {int(run.epochs[-1]['epoch']) + 1} of {run.setting('recipe.epochs')}"
    if run.last is None:
        return "begun"
    total = run.header["schedule"]["total"]
    if run.header["schedule"]["unit"] == "minutes":
        return f"{run.last.elapsed / 60:.1f} of {total:g} minutes of search"
    return f"{run.last.evaluation:,} of {total:,g} evaluations"


def _score(run: Record) -> str:
    """What the guide gives the best that was found, up to now."""
    scores = run.summary.get("search_score")
    if not isinstance(scores, dict) and run.search:
        trajectory = run.search.trajectory
        span = trajectory.last_span()
        best = span.start + int(trajectory.best(span)[-1])
        scores = {proxy: trajectory.scores(proxy, slice(best, best + 1))[0] for proxy in span.proxies}
    return ", ".join(f"{proxy} {number(value)}" for proxy, value in scores.items()) if isinstance(scores, dict) else ""


def _top1(run: Record) -> str:
    """The accuracy of the raw weights, and that of the averaged ones behind it; of a table's network the table's."""
    known = run.summary or {name: run.epochs[-1].get(f"val/{name}") for name in ("top1", "ema_top1") if run.epochs}
    raw, averaged, told = (known.get(name) for name in ("top1", "ema_top1", "accuracy"))
    if isinstance(raw, int | float):
        return f"{raw:.2%}" + (f" (averaged {averaged:.2%})" if isinstance(averaged, int | float) else "")
    return f"{told:.2f}%" if isinstance(told, int | float) else ""
