"""The trainings of a search's finalists as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esformer.search.finalists import Rung


def draw_finalists(rungs: Sequence[Mapping[int, Sequence[float]]], winner: int, path: Path) -> None:
    """How the finalists trained: a panel a rung, a line a network, the winner's in black.

    Args:
        rungs: for each rung the accuracies after each epoch, in percent, by the network's place in the guide's ranking.
        winner: the place of the one that was chosen.
        path: the PNG.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    places = sorted(rungs[0])
    colours = dict(zip(places, colormaps["viridis"](np.linspace(0, 0.95, len(places))), strict=True))
    figure = Figure(figsize=(3 + 3.6 * len(rungs), 4.2), layout="constrained")
    axes = figure.subplots(1, len(rungs), sharey=True, squeeze=False)[0]
    for number, (ax, courses) in enumerate(zip(axes, rungs, strict=True), 1):
        for place in sorted(courses):
            course, won = courses[place], place == winner
            how: dict[str, Any] = dict(color=colours[place], lw=1.2, ms=3.5, label=f"place {place}")
            if won:
                how = dict(color="black", lw=2.5, ms=5, zorder=3, label=f"place {place}, the winner")
            ax.plot(range(1, len(course) + 1), course, marker="o", **how)
        epochs = len(next(iter(courses.values())))
        ax.set_title(f"rung {number}: {Rung(len(courses), epochs)}", fontsize=10)
        ax.set_xlim(0.5, epochs + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set_xlabel("epoch")
        ax.grid(alpha=0.3, lw=0.5)
    axes[0].set_ylabel("validation top-1 [%]")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        title="in the guide's ranking",
        loc="outside right upper",
        ncol=math.ceil(len(places) / 16),
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=110)
