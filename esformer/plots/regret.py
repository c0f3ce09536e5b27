"""What searches of a table of trained networks find, as a picture."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from esformer.plots.ablation import by_method

COLORS = [f"C{n}" for n in range(10)] + ["black", "gold", "darkblue", "lime", "salmon", "teal"]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean, by Student's t; of a single value, that value twice."""
    from scipy.stats import t

    if len(values) < 2:
        return values[0], values[0]
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def draw_regret(curves: Mapping[str, np.ndarray], rows: Sequence[Mapping[str, Any]], space: str, path: Path) -> None:
    """The accuracy of each method on the way, mean over its seeds, and what each of its searches found in the end.

    Args:
        curves: seeds x evaluations, the accuracy of what a search would give if it ended there, by method.
        rows: a search each: its method, accuracy and best, in percent.
        space: what was searched.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    methods, best = list(curves), max(row["best"] for row in rows)
    figure = Figure(figsize=(14, max(4.5, 1.5 + 0.3 * len(methods))), layout="constrained")
    way, end = figure.subplots(1, 2)
    for method, color in zip(methods, cycle(COLORS)):
        accuracies = curves[method].mean(0)
        way.plot(np.arange(1, len(accuracies) + 1), accuracies, lw=1.3, color=color, label=method)
    way.axhline(best, color="black", lw=0.8, ls=":")
    way.set_xscale("log")
    way.set_ylim(bottom=min(curve.mean(0)[min(9, curve.shape[1] - 1)] for curve in curves.values()), auto=None)
    way.set_xlabel("evaluations (mean over the seeds)")
    way.set_ylabel("accuracy [%] of the best by the guide")
    way.legend(fontsize=7, ncols=2, loc="lower right")
    for place, found in enumerate(by_method(rows, "accuracy").values()):
        end.plot(mean_interval(found), [place] * 2, "-", lw=6, color="0.75", solid_capstyle="butt")
        end.plot(found, [place] * len(found), "o", ms=4, mew=0, alpha=0.5, color="tab:blue")
    end.axvline(best, color="black", lw=0.8, ls=":")
    end.set_yticks(range(len(methods)), methods, fontsize=8)
    end.invert_yaxis()
    end.set_xlabel("accuracy found [%]; grey: the mean's 95 % interval; dotted: the best")
    figure.suptitle(f"Searches of {space} by what guides them and how", fontsize=10)
    figure.savefig(path, dpi=130)
