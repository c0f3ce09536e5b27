"""A family of networks as a picture: the Pareto front of a search."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from esformer.search.family import Family, point_name
from esformer.search.ranking import Scored

SUMS = {"largest": ", each divided by its largest", "ranks": ", sum of ranks"}
UNITS = {"macs": ("MACs [M]", 1e6), "params": ("parameters [M]", 1e6), "latency_ms": ("latency [ms]", 1.0)}


def draw_family(family: Family, path: Path, named: Mapping[float, Scored], references: Mapping[str, Scored]) -> None:
    """Everything that the guide ranked as faint points, the front as steps, what was named and what to compare with.

    Args:
        family: what was found.
        path: the PNG.
        named: the best within costs that somebody named.
        references: other networks, by their names.
    """
    from matplotlib.figure import Figure

    label, unit = UNITS[family.cost]
    figure = Figure(figsize=(10, 6), layout="constrained")
    ax = figure.subplots()
    faint = min(0.4, max(0.05, 1000 / len(family.costs)))
    ax.plot(family.costs / unit, family.worths, ".", ms=4, mew=0, color="black", alpha=faint, label="an evaluation")
    costs, worths = _places(family, family.members, unit)
    ax.step(costs, worths, where="post", color="tab:red", lw=1.5, label="the best within each cost")
    ax.plot(costs, worths, ".", ms=5, color="tab:red")
    if named:
        costs, worths = _places(family, list(named.values()), unit)
        ax.plot(costs, worths, "o", ms=9, mfc="none", mec="tab:blue", mew=1.8, label="named")
    for point, cost, worth in zip(named, costs, worths, strict=False):
        ax.axvline(point / unit, color="tab:blue", lw=0.8, ls=":")
        text = point_name(family.cost, point)
        ax.annotate(text, (cost, worth), (-8, 6), textcoords="offset points", ha="right", color="tab:blue")
    for name, reference in references.items():
        ax.plot(*_places(family, [reference], unit), "*", ms=14, color="tab:green", label=name)
    ax.set_xlabel(label)
    ax.set_ylabel(f"{family.guide}{SUMS[family.guide.sum] if len(family.guide.terms) > 1 else ''}")
    ax.grid(alpha=0.3, lw=0.5)
    ax.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def _places(family: Family, several: Sequence[Scored], unit: float) -> tuple[list[float], list[float]]:
    return [one.cost / unit for one in several], [family.ranking(one) for one in several]
