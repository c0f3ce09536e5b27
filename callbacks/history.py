"""The history of a training: its metrics as tables and as a picture."""

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from callbacks.speed import Speed, learning_rate
from esformer.files import ContentError, whole_lines, write_text
from esformer.plots.training import Row, draw_training
from esformer.throttle import Throttle

STEPS = ("step", "epoch", "loss", "lr", "grad_norm", "images_per_second", "seconds")
"""The columns of `steps.csv`. The last two are of the clock: no second run of the same training has the same."""
LONGEST = 4096
"""Bytes, more than any of its lines has."""


class History(Callback):
    """Keeps every epoch's metrics in the checkpoints, as `metrics.csv` and as `training.png`; `steps.csv` beside them.

    `metrics.csv` holds what is of a whole epoch and nothing of the clock, so a run that was killed and went on ends
    with the file of an undisturbed one. `steps.csv` has a row a log point; it lies on the disk only, for a checkpoint
    must not grow with the steps. A run that goes on drops the rows after its checkpoint and writes them again.

    Args:
        folder: where the files go.
        speed: what measures; comes before this one among the callbacks. Without it there is no `steps.csv`.
        every: the least seconds between two pictures.
        drawn: called after each picture.
    """

    def __init__(
        self,
        folder: Path,
        speed: Speed | None = None,
        every: float = 60,
        drawn: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.speed, self.drawn = folder, speed, drawn
        self.epochs: list[dict[str, float]] = []
        self._throttle = Throttle(every)

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
            self._throttle.wait(0)
            self._write()

    @property
    def _steps(self) -> Path:
        return self.folder / "steps.csv"

    def _write(self) -> None:
        write_text(self.folder / "metrics.csv", _table(list(self.epochs[-1]), self.epochs))
        if self._throttle.due():
            draw_training(self.epochs, self.folder / "training.png", read_steps(self._steps))
            self.drawn()


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
