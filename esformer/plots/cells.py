"""A genotype of DARTS as a picture: its normal and its reduction cell."""

from pathlib import Path
from typing import Any

from esformer.benchmarks.darts import NODES, parse

INPUT, INNER, OUTPUT = "#95d5b2", "#8ecae6", "#ffb703"
STEP, HEIGHT = 2.4, 1.5
"""Inches: between two nodes of a cell; of the upper and the lower row from the middle."""


def draw_cells(notation: str, path: Path, title: str) -> None:
    """Both cells as the paper draws them (figures 4 and 5): nodes, and on each arrow the operation.

    Args:
        notation: the genotype.
        path: the PNG.
        title: of the picture.

    Raises:
        BenchmarkError: it is no genotype of DARTS.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    genotype = parse(notation)
    figure = Figure(figsize=(STEP * (NODES + 1) + 1.4, 8.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    names = {0: "c_{k-2}", 1: "c_{k-1}"} | {n: str(n - 2) for n in range(2, 2 + NODES)} | {2 + NODES: "c_{k}"}
    for ax, name, edges, concat in zip(
        figure.subplots(2), ("normal cell", "reduction cell"), genotype[::2], genotype[1::2], strict=True
    ):
        arrows = [(source, 2 + place // 2, op) for place, (op, source) in enumerate(edges)]
        arrows += [(node, 2 + NODES, "") for node in concat]
        for source, target, op in arrows:
            (x, y), (to_x, to_y) = start, end = _place(source), _place(target)
            rise = 0.25 if y >= to_y else -0.25  # bent away from the nodes between
            bend = f"arc3,rad={rise if op else 0}"
            how: dict[str, Any] = dict(arrowstyle="-|>", mutation_scale=11, shrinkA=15, shrinkB=15)
            line = FancyArrowPatch(start, end, connectionstyle=bend, color="black" if op else "0.7", **how)
            ax.add_patch(line)
            middle = (x + to_x) / 2 + rise * (to_y - y) / 2, (y + to_y) / 2 - rise * (to_x - x) / 2
            ax.text(*middle, op, fontsize=8, ha="center", va="center", backgroundcolor="white")
        for node, words in names.items():
            colour = INPUT if node < 2 else OUTPUT if node == 2 + NODES else INNER
            box = dict(boxstyle="round", facecolor=colour, edgecolor="black")
            ax.text(*_place(node), f"${words}$", ha="center", va="center", bbox=box, zorder=3)
        ax.set(title=name, xlim=(-0.7, STEP * (NODES + 1) + 0.7), ylim=(-HEIGHT - 0.9, HEIGHT + 0.9))
        ax.set_aspect("equal")
        ax.axis("off")
    figure.savefig(path, dpi=150)


def _place(node: int) -> tuple[float, float]:
    """Inputs to the left, the output to the right, the others in turn above and below, ever nearer to the middle."""
    if node == 2 + NODES:
        return STEP * (NODES + 1), 0.0
    height = HEIGHT if node < 4 else HEIGHT / 2
    return STEP * max(0, node - 1), height if node % 2 == 0 else -height
