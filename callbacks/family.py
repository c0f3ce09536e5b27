"""A family of networks as files: the front as a table and a picture, and a genotype for each cost that is named."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from esformer.atomic import write_text
from esformer.genotype import Genotype
from esformer.search.family import Family
from esformer.search.ranking import Scored
from esformer.search.stage import SearchStage

SUMS = {"largest": ", each divided by its largest", "ranks": ", sum of ranks"}
UNITS = {"macs": ("MACs [M]", 1e6), "params": ("parameters [M]", 1e6), "latency_ms": ("latency [ms]", 1.0)}


def write_family(
    family: Family, folder: Path, points: Sequence[float] = (), references: Mapping[str, Scored] | None = None
) -> dict[float, Path]:
    """Leave `front.csv`, `front.png`, and for each of some costs `family/COST.yaml`: the best within it.

    Args:
        family: what was found.
        folder: where the files go.
        points: the costs.
        references: other networks to show in the picture, by their names.

    Raises:
        ESFormerError: nothing costs as little as a point; no genotype is written.
    """
    best = {point: family.best(point) for point in points}
    write_text(folder / "front.csv", family.csv())
    draw_family(family, folder / "front.png", best, references or {})
    files = {point: folder / "family" / f"{point_name(family.cost, point)}.yaml" for point in points}
    for point, file in files.items():
        file.parent.mkdir(exist_ok=True)
        facts = f"the best within {point:,.12g} {family.cost}: {best[point].cost:,.12g}"
        scores = ", ".join(f"{name} {score:.6g}" for name, score in best[point].scores.items())
        best[point].genotype.save(file, comment=f"{facts}\n{scores}")
    return files


def point_name(cost: str, point: float) -> str:
    """A cost in short, such as 200M or 3.5ms."""
    return f"{point:.12g}ms" if cost == "latency_ms" else f"{point / 1e6:.12g}M"


def references(stage: SearchStage) -> dict[str, Scored]:
    """EfficientFormerV2 of the search's size as the guide sees it, where this is quickly known."""
    size, cost = stage.space.name.partition("-")[0], stage.schedule.family
    genotype = Genotype.shipped(f"efficientformerv2_{size.lower()}")
    if cost is None or cost == "latency_ms" or (scores := stage.score(genotype)) is None:
        return {}  # a latency that is measured now compares with none that was measured then
    return {f"EfficientFormerV2-{size}": Scored(genotype, scores, stage.costs.of(genotype, cost))}


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
