"""A training as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DRAWN = 1e100
"""What is larger, or not finite, is in the table alone."""
WIDE = 30
"""From so many times the smallest gradient norm to the largest on, its axis is logarithmic."""

Row = Mapping[str, float]


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
