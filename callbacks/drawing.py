"""The search and what it found as pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.trajectory import Span, Trajectory
from esformer.genotype import Block, ConvBlock, Genotype
from esformer.search.finalists import Rung

PHASES = {"multi-start": "tab:gray", "topology": "tab:blue", "size": "tab:orange", "joint": "tab:green"}
FFNS = {"ibn": "#8ecae6", "convnext": "#ffb703", "bottleneck": "#95d5b2"}
ATTENTION = "#cdb4db"
FFN_NAMES = {"ibn": "IBN", "convnext": "ConvNeXt", "bottleneck": "bottleneck"}
COSTS = {"params": ("parameters [M]", 1e6), "macs": ("MACs [G]", 1e9), "latency_ms": ("latency [ms]", 1.0)}
GREY = "0.85"
TIMES = "\N{MULTIPLICATION SIGN}"
COLUMN, TALL = 0.46, 3.4
"""Inches: a column of the drawing; its widest block."""
GAP, END = 0.6, 0.9
"""Columns: between two stages; the stem and the classifier."""
POINTS = 300
"""Of a curve that changes at every evaluation so many points are drawn of each phase."""
INTERVALS = 100
"""Over so many parts of a search its speed is averaged."""


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


def _values(ax: Any, trajectory: Trajectory, values: np.ndarray, spans: Sequence[Span]) -> None:
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


def draw_genotype(genotype: Genotype, path: Path, title: str) -> None:
    """The network block by block, in the order in which an image passes it.

    A box is as high as its block is wide in channels. A Transformer layer has two boxes: attention, then its FFN.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, Patch, Rectangle

    # x in columns, y in channels, the flow of the image at y = 0
    widest = max(block.out for block in genotype.blocks())
    inch = widest / TALL
    top, channels, expansion, bottom = (
        np.array([0.7, -0.3, -0.55, -0.75]) * inch + np.array([1, -1, -1, -1]) * widest / 2
    )
    length = END + sum(GAP + sum(map(_columns, stage)) for stage in genotype.stages) + GAP + END
    width, height = COLUMN * length, (top - bottom) / inch
    page = (width + 1.65, height + 0.95)
    figure = Figure(figsize=page)
    ax = figure.add_axes((1.1 / page[0], 0.5 / page[1], width / page[0], height / page[1]))
    ax.set(xlim=(0, length), ylim=(bottom, top))
    ax.axis("off")

    def text(x: float, y: float, words: str, size: float = 8, ha: str = "center", **how: Any) -> None:
        ax.text(x, y, words, fontsize=size, ha=ha, **({"va": "center"} | how))

    def box(x: float, columns: float, height: float, colour: str, words: str, **how: Any) -> None:
        ax.add_patch(Rectangle((x, -height / 2), columns, height, facecolor=colour, edgecolor="black", clip_on=False))
        text(x + columns / 2, 0, words, **how)

    flow = FancyArrowPatch((-0.9, 0), (length + 0.9, 0), arrowstyle="-|>", mutation_scale=12, color="black", zorder=0.5)
    flow.set_clip_on(False)
    ax.add_patch(flow)
    text(-1, 0, "image", 9, "right")
    text(END - 0.3, channels, "channels (height)", 9, "right")
    text(END - 0.3, expansion, "expansion", 9, "right")
    box(0, END, inch, GREY, "stem", rotation=90)
    x = END
    for number, stage in enumerate(genotype.stages):
        x += GAP
        columns = sum(map(_columns, stage))
        ax.add_patch(Rectangle((x - 0.12, bottom), columns + 0.24, top - bottom, facecolor="0.95", zorder=0))
        heading = f"stage {number + 1}\n1/{4 * 2**number} resolution"
        text(x + columns / 2, top - 0.1 * inch, heading, 9, va="top", linespacing=1.3)
        for block in stage:
            if isinstance(block, ConvBlock):
                box(x + 0.06, 0.88, block.out, FFNS[block.ffn], f"{block.kernel}{TIMES}{block.kernel}")
            else:
                box(x + 0.06, 1.06, block.out, ATTENTION, f"{block.heads}{TIMES}{block.head_dim}")
                box(x + 1.12, 0.82, block.out, FFNS[block.ffn], f"3{TIMES}3")
            middle = x + _columns(block) / 2
            text(middle, channels, str(block.out))
            text(middle, expansion, f"{'÷' if block.ffn == 'bottleneck' else TIMES}{block.ratio}")
            x += _columns(block)
    box(x + GAP, END, inch, GREY, "classifier", rotation=90)

    present = {block.ffn for block in genotype.blocks()}
    kinds = {f"{FFN_NAMES[ffn]} FFN: kernel": colour for ffn, colour in FFNS.items() if ffn in present}
    kinds[f"attention of a Transformer layer: heads {TIMES} key channels"] = ATTENTION
    handles = [Patch(facecolor=colour, edgecolor="black", label=label) for label, colour in kinds.items()]
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / page[1], va="top")
    figure.savefig(path, dpi=110)


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


def _columns(block: Block) -> int:
    """A Transformer layer takes two columns of the drawing: one for its attention, one for its FFN."""
    return 1 if isinstance(block, ConvBlock) else 2
