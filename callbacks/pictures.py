"""What a person wants to see of a training: its metrics as tables and as a picture."""

import csv
import io
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from callbacks.speed import Speed, learning_rate
from esformer.atomic import write_text
from esformer.files import ContentError, whole_lines

STEPS = ("step", "epoch", "loss", "lr", "grad_norm", "images_per_second", "seconds")
"""The columns of `steps.csv`. The last two are of the clock: no second run of the same training has the same."""
LONGEST = 4096
"""Bytes, more than any of its lines has."""
DRAWN = 1e100
"""What is larger, or not finite, is in the table alone."""
WIDE = 30
"""From so many times the smallest gradient norm to the largest on, its axis is logarithmic."""

Row = Mapping[str, float]


class History(Callback):
    """Keeps every epoch's metrics in the checkpoints, as `metrics.csv` and as `training.png`; `steps.csv` beside them.

    `metrics.csv` holds what is of a whole epoch and nothing of the clock, so a run that was killed and went on ends
    with the file of an undisturbed one. `steps.csv` has a row a log point; it lies on the disk only, for a checkpoint
    must not grow with the steps. A run that goes on drops the rows after its checkpoint and writes them again.

    Args:
        folder: where the files go.
        speed: what measures; comes before this one among the callbacks. Without it there is no `steps.csv`.
        every: the least seconds between two pictures.
    """

    def __init__(self, folder: Path, speed: Speed | None = None, every: float = 60) -> None:
        self.folder, self.speed, self.every = folder, speed, every
        self.epochs: list[dict[str, float]] = []
        self._drawn = float("-inf")

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.speed is not None:
            rows = [row for row in read_steps(self._steps) if row["step"] <= trainer.global_step]
            write_text(self._steps, _table(STEPS, rows))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.speed is None or not self.speed.logged:
            return
        metrics = trainer.callback_metrics
        row: dict[str, float] = {"step": trainer.global_step, "epoch": trainer.current_epoch, "lr": self.speed.lr}
        for column, names in {"loss": ("train/loss_step", "train/loss"), "grad_norm": ("train/grad_norm",)}.items():
            if known := [name for name in names if name in metrics]:
                row[column] = float(metrics[known[0]])
        steps, seconds = self.speed.window
        if steps and seconds > 0:
            row |= {"images_per_second": self.speed.batch_size * steps / seconds, "seconds": seconds}
        if trainer.is_global_zero:
            with self._steps.open("a", encoding="utf-8") as file:
                file.write(_table(STEPS, [row], header=False))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["lr"] = learning_rate(trainer)
        for name, value in trainer.callback_metrics.items():
            # a run that goes on in a validation has made no step yet: what is of one step is in steps.csv alone
            if name.startswith("val/") or (name.startswith("train/") and name.endswith("_epoch")):
                row[name.removesuffix("_epoch")] = float(value)
        self.epochs = [*self.epochs[: trainer.current_epoch], row]
        if trainer.is_global_zero:
            self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.epochs:
            self._drawn = float("-inf")
            self._write()

    @property
    def _steps(self) -> Path:
        return self.folder / "steps.csv"

    def _write(self) -> None:
        write_text(self.folder / "metrics.csv", _table(list(self.epochs[-1]), self.epochs))
        if time.monotonic() - self._drawn > self.every:
            self._drawn = time.monotonic()
            draw_training(self.epochs, self.folder / "training.png", read_steps(self._steps))


def read_steps(file: Path) -> list[dict[str, float]]:
    """The rows of a `steps.csv`, in order; what is not there or only half written is left out."""
    if not file.exists():
        return []
    rows: list[dict[str, float]] = []
    header: list[str] = []
    with suppress(ContentError):  # a line that no table has; those before it count
        for _, line, _ in whole_lines(file, LONGEST):
            try:
                (values,) = csv.reader([line.decode()])
                header = header or values
                row = {name: float(value) for name, value in zip(header, values, strict=True) if value}
                rows.append(row | {name: int(row[name]) for name in ("step", "epoch")})
            except (ValueError, KeyError, csv.Error, OverflowError):
                continue
    return rows


def _table(columns: Sequence[str], rows: Sequence[Row], header: bool = True) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=columns, extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def draw_training(epochs: Sequence[Row], path: Path, steps: Sequence[Row] = ()) -> None:
    """Losses, accuracies of raw and averaged weights, learning rate and gradient norm, over the epochs.

    Args:
        epochs: a row an epoch, as in `metrics.csv`; at least one.
        path: the PNG.
        steps: a row a log point, as in `steps.csv`; drawn as thin lines below the epochs' points.
    """
    from matplotlib.figure import Figure

    length = epochs[-1]["step"] / (epochs[-1]["epoch"] + 1)  # steps of an epoch
    fine = [{**row, "at": row["step"] / length} for row in steps]
    coarse = [{**row, "at": row["epoch"] + 1} for row in epochs]
    one = "." if len(epochs) <= 50 else None
    panels: dict[str, list[tuple[Sequence[Row], str, str, dict[str, Any]]]] = {
        "loss": [
            (fine, "loss", "training, single steps", dict(color="tab:blue", lw=0.7, alpha=0.4)),
            (coarse, "train/loss", "training, as the recipe has it", dict(color="tab:blue", marker=one)),
            (coarse, "val/loss", "validation, cross-entropy", dict(color="tab:orange", marker=one)),
        ],
        "validation top-1": [
            (coarse, "val/top1", "raw weights", dict(color="tab:blue", marker=one)),
            (coarse, "val/ema_top1", "averaged weights", dict(color="tab:orange", marker=one)),
        ],
        "learning rate": [(fine or coarse, "lr", "", dict(color="tab:blue"))],
        "gradient norm": [(fine, "grad_norm", "", dict(color="tab:blue", lw=0.7))],
    }
    figure = Figure(figsize=(16, 3.8), layout="tight")
    for ax, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for rows, name, label, how in lines:
            points = [(row["at"], row[name]) for row in rows if abs(row.get(name, math.inf)) < DRAWN]
            if points:
                ax.plot(*zip(*points, strict=True), label=label, **{"lw": 1.5} | how)
        if title == "gradient norm" and ax.lines and ax.dataLim.y1 > WIDE * ax.dataLim.y0 > 0:
            ax.set_yscale("log")
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.grid(alpha=0.3, lw=0.5)
        ax.set_xlim(left=0)
        if any(line.get_label()[0] != "_" for line in ax.lines):
            ax.legend()
    figure.savefig(path, dpi=110)
