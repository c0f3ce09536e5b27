"""What trained networks reach, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from esformer.benchmarks.esformers import Training

COLOURS = {
    "reference": "tab:red",
    "finalist": "tab:green",
    "found by evaluations": "tab:orange",
    "found by paper": "tab:orange",
    "found": "tab:blue",
    "shipped": "tab:blue",
}
"""By how a network was drawn, the first that fits; the others are grey."""


def draw_trainings(trainings: Sequence[Training], path: Path) -> None:
    """A line for each network, the best on top: a dot for what each training reached, a stroke for their mean.

    Args:
        trainings: of any number of networks and seeds.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    reached: dict[str, list[Training]] = {}
    for training in trainings:
        reached.setdefault(training.genotype, []).append(training)
    networks = sorted(reached.values(), key=lambda network: mean(one.top1[-1] for one in network))
    figure = Figure(figsize=(8, 1.2 + 0.25 * len(networks)), layout="constrained")
    ax = figure.subplots()
    for line, network in enumerate(networks):
        colour = next((one for how, one in COLOURS.items() if network[0].drawn.startswith(how)), "0.45")
        accuracies = [one.top1[-1] for one in network]
        ax.plot(accuracies, [line] * len(accuracies), "o", color=colour, ms=5, alpha=0.7)
        if len(accuracies) > 1:
            ax.plot(mean(accuracies), line, "|", color=colour, ms=14, mew=2)
    ax.set_yticks(range(len(networks)), [label(network[0]) for network in networks], fontsize=8)
    ax.set_ylim(-0.7, len(networks) - 0.3)
    ax.set_xlabel("validation top-1 after the last epoch [%]")
    ax.grid(axis="x", alpha=0.3, lw=0.5)
    figure.savefig(path, dpi=110)


def label(training: Training) -> str:
    """How the network was drawn, and what it costs."""
    return f"{training.drawn}   {training.params / 1e6:.2f} M, {training.macs / 1e6:.1f} MMACs"
