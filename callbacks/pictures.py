"""What a person wants to see of a run: its table of metrics, the search and the training as pictures."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from esformer.atomic import write_text
from esformer.search.evolution import Scored
from esformer.search.journal import Evaluation
from esformer.search.schedule import Phase
from esformer.search.stage import SearchCallback, SearchResult, SearchStage

COLOURS = {"multi-start": "tab:grey", "topology": "tab:blue", "size": "tab:orange"}


class SearchPicture(SearchCallback):
    """Draws `search.png` after every phase."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "search.png"

    def on_phase_end(self, stage: SearchStage, phase: Phase, best: Scored) -> None:
        if stage.fabric.is_global_zero:
            draw_search(list(stage.journal), stage.budget.params, self.path)

    def on_search_end(self, stage: SearchStage, result: SearchResult) -> None:
        if stage.fabric.is_global_zero:
            draw_search(list(stage.journal), stage.budget.params, self.path)


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


def draw_search(evaluations: Sequence[Evaluation], budget: float | None, path: Path) -> None:
    """Every score and the best of its phase, a panel a proxy; below, the parameters against the budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    proxies = list(dict.fromkeys(e.proxy for e in evaluations))
    phases = list(dict.fromkeys(e.phase for e in evaluations))
    figure, axes = plt.subplots(len(proxies) + 1, 1, sharex=True, figsize=(9, 2.6 * (len(proxies) + 1)), squeeze=False)
    for phase in phases:
        part = [e for e in evaluations if e.phase == phase]
        colour = COLOURS[phase.rpartition(" ")[0]]
        x = [e.evaluation for e in part]
        for ax in axes[:, 0]:
            ax.axvspan(x[0] - 0.5, x[-1] + 0.5, color=colour, alpha=0.12, lw=0)
        ax = axes[proxies.index(part[0].proxy), 0]
        scores = [e.score for e in part]
        ax.plot(x, scores, ".", ms=3, color=colour)
        ax.plot(x, [max(scores[: i + 1]) for i in range(len(scores))], color=colour)
        axes[-1, 0].plot(x, [e.params / 1e6 for e in part], ".", ms=3, color=colour)
    for ax, name in zip(axes[:, 0], [*proxies, "parameters [M]"], strict=True):
        ax.set_ylabel(name)
    if budget:
        axes[-1, 0].axhline(budget / 1e6, color="black", lw=0.8, ls="--")
    axes[-1, 0].set_xlabel("evaluation")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour, alpha=0.4) for colour in COLOURS.values()]
    figure.legend(handles, [f"{name} phase" for name in COLOURS], loc="upper center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_training(epochs: Sequence[Mapping[str, float]], path: Path) -> None:
    """Losses, accuracies of raw and averaged weights, and the learning rate, over the epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {
        "loss": {"train/loss": "training, as the recipe has it", "val/loss": "validation, cross-entropy"},
        "validation top-1": {"val/top1": "raw weights", "val_ema/top1": "averaged weights"},
        "learning rate": {"lr": "end of the epoch"},
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    for ax, (title, names) in zip(axes, panels.items(), strict=True):
        for name, label in names.items():
            points = [(row["epoch"] + 1, row[name]) for row in epochs if name in row]
            if points:
                ax.plot(*zip(*points, strict=True), marker=".", label=label)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
