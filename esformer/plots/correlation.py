"""Figure 2 of the paper: what proxies say of architectures against the accuracy that these reach when trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLUMNS = 4
SPAN = 1000
"""Scores of which the largest is more times a small one are drawn on a logarithmic scale, to both sides of zero."""


@dataclass(frozen=True)
class Panel:
    """One proxy and the architectures that it could score."""

    title: str
    scores: np.ndarray
    accuracies: np.ndarray


def draw_correlations(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw every proxy against the accuracy, a panel a proxy, a point an architecture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, NullLocator

    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows, columns, sharey=True, squeeze=False, figsize=(max(5.0, 3.6 * columns), 3.3 * rows + 0.4)
    )
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, panel in zip(axes.flat, panels, strict=False):
        n = len(panel.scores)
        ax.plot(
            panel.scores,
            panel.accuracies,
            ".",
            ms=5 if n < 300 else 3 if n < 5000 else 1.5,
            mew=0,
            alpha=min(0.6, max(0.01, 5000 / (n + 1))),
            color="tab:blue",
        )
        sizes = np.abs(panel.scores[panel.scores != 0])
        if len(sizes) and sizes.max() > SPAN * (small := np.quantile(sizes, 0.05)):
            ax.set_xscale("symlog", linthresh=small)
            ax.set_xticks(_decades(panel.scores, small))
            ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(panel.title, fontsize=9)
        ax.set_xlabel("score", fontsize=9)
        ax.tick_params(labelsize=8)
        ax.xaxis.get_offset_text().set_fontsize(8)
        ax.grid(alpha=0.25, lw=0.5)
    for ax in axes[:, 0]:
        ax.set_yscale("function", functions=(_spread, _gather))
        ax.yaxis.set_major_locator(MaxNLocator(10))
        ax.set_ylabel("test accuracy [%]", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _spread(accuracy: np.ndarray) -> np.ndarray:
    """The logarithm of the error: good networks stay apart where a few that learn nothing are drawn too."""
    spread: np.ndarray = -np.log(np.maximum(100 - accuracy, 0.1))
    return spread


def _gather(spread: np.ndarray) -> np.ndarray:
    accuracy: np.ndarray = 100 - np.exp(-spread)
    return accuracy


def _decades(scores: np.ndarray, small: float) -> list[float]:
    """Zero and a few powers of ten to each side that has scores, none so near to zero that their labels would meet."""
    ticks = [0.0]
    for side in (1, -1):
        if (largest := (side * scores).max()) > small:
            exponents = np.linspace(math.ceil(math.log10(small)), math.floor(math.log10(largest)), 3).round()
            ticks += [side * 10.0**exponent for exponent in np.unique(exponents)[1:]]
    return sorted(ticks)
