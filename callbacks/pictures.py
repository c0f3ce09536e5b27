"""What a person wants to see of a training: its metrics as a table and as a picture."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from esformer.atomic import write_text


class History(Callback):
    """Keeps every epoch's metrics in the checkpoints, as `metrics.csv` and as `training.png`.

    Args:
        folder: where the two files go.
        every: the least seconds between two pictures.
    """

    def __init__(self, folder: Path, every: float = 60) -> None:
        self.folder, self.every = folder, every
        self.epochs: list[dict[str, float]] = []
        self._drawn = float("-inf")

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        for name, value in trainer.callback_metrics.items():
            if name.startswith(("train/", "val")) and not name.endswith("_step"):
                row[name.removesuffix("_epoch")] = float(value)
        self.epochs = [*self.epochs[: trainer.current_epoch], row]
        if trainer.is_global_zero:
            self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.epochs:
            self._drawn = float("-inf")
            self._write()

    def _write(self) -> None:
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(self.epochs[-1]), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.epochs)
        write_text(self.folder / "metrics.csv", table.getvalue())
        if time.monotonic() - self._drawn > self.every:
            self._drawn = time.monotonic()
            draw_training(self.epochs, self.folder / "training.png")


def draw_training(epochs: Sequence[Mapping[str, float]], path: Path) -> None:
    """Losses, accuracies of raw and averaged weights, and the learning rate, over the epochs."""
    from matplotlib.figure import Figure

    panels = {
        "loss": {"train/loss": "training, as the recipe has it", "val/loss": "validation, cross-entropy"},
        "validation top-1": {"val/top1": "raw weights", "val_ema/top1": "averaged weights"},
        "learning rate": {"lr": "end of the epoch"},
    }
    figure = Figure(figsize=(13, 3.6), layout="tight")
    for ax, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name, label in names.items():
            points = [(row["epoch"] + 1, row[name]) for row in epochs if name in row]
            if points:
                ax.plot(*zip(*points, strict=True), marker=".", label=label)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.legend()
    figure.savefig(path, dpi=110)
