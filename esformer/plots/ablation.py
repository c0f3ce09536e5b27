"""What the searches of an ablation found, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from esformer.choices import choices_of


def draw_ablation(rows: Sequence[Mapping[str, Any]], space: str, path: Path) -> None:
    """The scores of every genotype, the FFN kinds of each method, and the accuracies where there are any.

    Args:
        rows: a found genotype each: its method, entropic_score and log_synflow, how many blocks of each FFN kind it
            has, and, if it was trained, top1 and ema_top1 (from 0 to 1).
        space: the search space's name.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row["method"] for row in rows))
    trained = any("top1" in row for row in rows)
    figure = Figure(figsize=(9 + 4 * trained, 3.8), layout="constrained")
    axes = figure.subplots(1, 2 + trained)
    scores, kinds = axes[:2]
    entropic, synflow = (by_method(rows, proxy) for proxy in ("entropic_score", "log_synflow"))
    for method in methods:
        scores.plot(entropic[method], synflow[method], "o", ms=6, mew=0, alpha=0.7, label=method)
    scores.set_xlabel("Entropic Score")
    scores.set_ylabel("LogSynflow")
    scores.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    left = [0.0] * len(methods)
    for kind, grey in zip(choices_of(space).ffn, ("0.85", "0.6", "0.25"), strict=False):
        counts = [mean(values) for values in by_method(rows, kind).values()]
        kinds.barh(methods, counts, left=left, label=kind, height=0.6, color=grey)
        left = [start + count for start, count in zip(left, counts, strict=True)]
    kinds.invert_yaxis()
    kinds.set_xlabel("blocks with each FFN kind, mean over the seeds")
    kinds.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    if trained:
        for column, label, mark in (("top1", "raw", "o"), ("ema_top1", "averaged weights", "x")):
            points = [(100 * value, method) for method, many in by_method(rows, column).items() for value in many]
            if points:
                axes[2].plot(*zip(*points, strict=True), mark, color="tab:blue", alpha=0.7, label=label)
        axes[2].invert_yaxis()
        axes[2].set_xlabel("top-1 [%]")
        axes[2].legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.suptitle(f"Searches of {space} by what guides them", fontsize=10)
    figure.savefig(path, dpi=130)


def by_method(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, list[float]]:
    """The values of a column, one for each seed, of each method that has any."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.get(column) is not None:
            values.setdefault(row["method"], []).append(row[column])
    return values
