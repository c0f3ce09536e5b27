"""A search as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esformer.search.trajectory import PhaseRange, Trajectory

PHASES = {"multi-start": "tab:gray", "topology": "tab:blue", "size": "tab:orange", "joint": "tab:green"}
COSTS = {"params": ("parameters [M]", 1e6), "macs": ("MACs [G]", 1e9), "latency_ms": ("latency [ms]", 1.0)}
POINTS = 300
"""Points that are drawn of a curve in each phase, at most."""
INTERVALS = 100
"""Parts of a search over which its speed is averaged."""


def draw_search(trajectory: Trajectory, limits: Mapping[str, float | None], path: Path) -> None:
    """What was evaluated, the best so far of each phase and the median of its population, costs and speed.

    Args:
        trajectory: the evaluations.
        limits: what the budget allows, by the name of the cost.
        path: the PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    proxies, costs, spans = trajectory.proxies, trajectory.costs, trajectory.spans()
    rows = len(proxies) + len(costs) + 1
    figure = Figure(figsize=(14, 1.2 + 1.9 * rows), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(2.6, 1))
    left, right = parts
    axes = left.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for ax in axes:
        for span in spans:
            ax.axvspan(span.start + 0.5, span.stop + 0.5, color=PHASES[span.kind], alpha=0.15, lw=0, zorder=0)
            ax.axvline(span.start + 0.5, color="white", lw=1, zorder=0.1)
        ax.margins(x=0)
        ax.grid(axis="y", alpha=0.3, lw=0.5)
    for ax, proxy in zip(axes, proxies, strict=False):
        shown = [span for span in spans if proxy in span.proxies]
        _values(ax, trajectory, trajectory.scores(proxy), shown)
        for span in shown:
            at = np.unique(np.linspace(0, span.stop - span.start - 1, POINTS).astype(int))
            ax.plot(span.start + 1 + at, trajectory.medians(span, proxy, at), color="tab:purple", lw=1.2)
        ax.set_ylabel(proxy)
    for ax, name in zip(axes[len(proxies) :], costs, strict=False):
        label, unit = COSTS[name]
        _values(ax, trajectory, trajectory.column(name) / unit, spans)
        if limit := limits.get(name):
            ax.axhline(limit / unit, color="black", lw=1, ls="--")
        ax.set_ylabel(label)
    _speed(axes[-1], trajectory)
    axes[-1].set_xlabel("evaluation")
    left.align_ylabels()
    kinds = dict.fromkeys(span.kind for span in spans)
    handles: list[Any] = [
        Line2D([], [], marker=".", ls="", color="black", alpha=0.5, label="an evaluation"),
        Line2D([], [], color="tab:red", lw=1.8, label="the best of the phase so far"),
        Line2D([], [], color="tab:purple", lw=1.2, label="median of the population"),
        Line2D([], [], color="black", lw=1, ls="--", label="budget"),
        *(Patch(color=PHASES[kind], alpha=0.3, label=f"{kind} phase") for kind in kinds),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncol=len(handles), frameon=False, fontsize=9)
    _scatter(right, trajectory, limits.get("params"))
    figure.savefig(path, dpi=110)


def _values(ax: Any, trajectory: Trajectory, values: np.ndarray, spans: Sequence[PhaseRange]) -> None:
    """A dot an evaluation, and a line through those that are the best so far of their phase."""
    evaluations = np.arange(1, len(values) + 1)
    faint = min(0.4, max(0.05, 1000 / len(values)))
    ax.plot(evaluations, values, ".", ms=3, mew=0, color="black", alpha=faint)
    for span in spans:
        best = values[span.slice][trajectory.best(span)]
        ax.plot(evaluations[span.slice], best, color="tab:red", lw=1.8)


def _speed(ax: Any, trajectory: Trajectory) -> None:
    """Evaluations a second. The parts are equal in time: scores that are known already come in no time at all."""
    elapsed = trajectory.column("elapsed")
    times = np.linspace(0, elapsed[-1], INTERVALS + 1)
    done, first = np.unique(np.searchsorted(elapsed, times, side="right"), return_index=True)
    if len(done) > 1:
        ax.stairs(np.diff(done) / np.diff(times[first]), done + 0.5, color="black", lw=1, baseline=None)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("evaluations a second")


def _scatter(figure: Any, trajectory: Trajectory, limit: float | None) -> None:
    """Score against parameters, a panel a proxy."""
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots(len(trajectory.proxies), 1, squeeze=False)[:, 0]
    params, evaluations = trajectory.column("params") / 1e6, np.arange(1, len(trajectory) + 1)
    for ax, proxy in zip(axes, trajectory.proxies, strict=True):
        dots = ax.scatter(
            params, trajectory.scores(proxy), c=evaluations, vmin=1, vmax=len(trajectory), s=5, lw=0, alpha=0.5
        )
        if limit:
            ax.axvline(limit / 1e6, color="black", lw=1, ls="--")
        ax.set_xlabel("parameters [M]")
        ax.set_ylabel(proxy)
        ax.grid(alpha=0.3, lw=0.5)
    bar = figure.colorbar(
        dots, ax=axes, label="evaluation", location="bottom", aspect=40, pad=0.02, shrink=0.85, ticks=MaxNLocator(4)
    )
    bar.solids.set_alpha(1)
