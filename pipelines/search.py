"""Search: find the best genotype of a size within a budget, without training anything.

With search.finalists=9 nine of the best are trained on the images of data=..., and the best of them is what comes out.
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.budget import explain_auto
from configs.schema import AUTO, Config, ConfigError
from pipelines.runtime import cli

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

    from esformer.genotype import Genotype
    from esformer.search.ranking import Scored
    from pipelines.runtime.run_folder import RunFolder

log = logging.getLogger("esformer")


def costs(text: str) -> list[float]:
    """The type of `--points`: numbers above 0, with commas between them."""
    try:
        points = [float(one) for one in text.split(",")]
    except ValueError:
        points = []
    if not points or not all(0 < point < math.inf for point in points):
        raise argparse.ArgumentTypeError(f"{text!r} must be costs above 0, such as 2e8,3e8,4e8")
    return points


FLAGS: dict[str, dict[str, Any]] = {
    "--points": dict(
        metavar="COSTS",
        type=costs,
        default=[],
        help="with search.family: write the best genotype within each of these costs, such as 2e8,3e8; a finished"
        " search is not repeated for others",
    ),
    "--replay": dict(
        metavar="JOURNAL",
        type=cli.path,
        help="rebuild the result of a finished search from its journal alone, into run.dir",
    ),
    "--speed": dict(
        metavar="GENOTYPES",
        type=int,
        nargs="?",
        const=100,
        help="measure how fast this machine scores so many genotypes of the size, and how small inputs rank them",
    ),
    "--late": dict(metavar="JOURNAL", type=cli.path, help="with --speed: rank the last genotypes of this search too"),
    **cli.DRY_RUN,
}


def search(config: Config, run: "RunFolder", loggers: "list[WandbLogger]") -> "Genotype":
    """The search stage: runs it, or goes on with it; leaves `genotype.yaml` and `search.png` in the run's folder."""
    from callbacks.progress import SearchProgress
    from callbacks.search import SearchHistory, SearchLog, StopWhenAsked
    from esformer.genotype import Genotype
    from esformer.space import SearchSpace
    from pipelines.runtime.build import search_fabric, search_stage
    from pipelines.runtime.run_folder import RunError, is_main
    from pipelines.runtime.signals import stop
    from pipelines.runtime.tracking import log_genotype

    if run.genotype.exists():
        genotype = Genotype.load(run.genotype)
        if genotype not in SearchSpace.for_size(config.size, config.search.extended):
            raise RunError(f"{run.genotype} is of space {genotype.space}, which this run does not search")
        return genotype
    progress = SearchProgress(bar=sys.stdout.isatty() and is_main())
    # a signal ends the search at once, but where Python was in a place in which it loses exceptions
    last = StopWhenAsked(lambda: stop.asked)
    fabric = search_fabric(config, [progress, SearchHistory(run.path), SearchLog(), last], loggers)
    stage = search_stage(config, checkpoint=run.journal, fabric=fabric)
    log.info("space %s holds %.3g genotypes", stage.space.name, stage.space.cardinality)
    if config.budget.macs == AUTO:
        log.info("budget.macs=%s: %s", AUTO, explain_auto(config))
    result = stage.run()
    if fabric.is_global_zero:
        result.genotype.save(run.genotype, comment=f"found by: {run.command}\nin {result.evaluations} evaluations")
        log_genotype(loggers, result.genotype, params=result.cost.params, macs=result.cost.macs)
    fabric.barrier()
    return result.genotype


def search_summary(config: Config, run: "RunFolder", genotype: "Genotype") -> dict[str, Any]:
    """What `summary.json` says of the search."""
    from esformer.model.cost import cost
    from esformer.search.journal import JournalError, read

    price = cost(genotype, config.data.img_size, config.data.num_classes or 1000)
    last, scores = None, {}
    for evaluation in read(run.journal):
        last = evaluation
        if evaluation.genotype == genotype.to_dict():
            scores = evaluation.scores
    if last is None:
        raise JournalError(f"{run.journal} holds no evaluation, but {run.genotype} was found; choose another run.dir")
    return {
        "size": config.size,
        "genotype": str(run.genotype),
        "params": price.params,
        "macs": price.macs,
        "search_evaluations": last.evaluation,
        "search_seconds": last.elapsed,
        "search_score": scores,
    }


def check_points(config: Config, points: Sequence[float]) -> None:
    """Refuse costs that no genotype is as cheap as, before there is a search for them.

    Raises:
        ConfigError: says what the cheapest costs.
    """
    from esformer.model.cost import cost
    from esformer.search.evolution import cheapest
    from esformer.space import SearchSpace

    if not points or (name := config.search.family) not in ("macs", "params"):
        return
    space = SearchSpace.for_size(config.size, config.search.extended)

    def weigh(genotype: "Genotype") -> float:
        price = cost(genotype, config.data.img_size, config.data.num_classes or 1000)
        return float(getattr(price, name))

    if (point := min(points)) < (least := weigh(cheapest(space, weigh))):
        raise ConfigError(
            f"--points asks for {point:,.12g} {name}; the cheapest genotype of space {space.name} has {least:,.12g}"
        )


def write_points(journal: Path, folder: Path, points: Sequence[float], references: "dict[str, Scored]") -> None:
    """Write the best genotype within each cost as `family/COST.yaml` in a folder, and show them in `front.png`.

    Raises:
        ESFormerError: nothing was found that costs as little as one of them.
    """
    from esformer.plots.family import draw_family
    from esformer.search.family import read_family, write_family

    family = read_family(journal)
    files = write_family(family, folder, points)
    draw_family(family, folder / "front.png", {point: family.best(point) for point in points}, references)
    for point, file in files.items():
        best = family.best(point)
        scores = ", ".join(f"{name} {score:.6g}" for name, score in best.scores.items())
        log.info("%s: %s %s, %s", file, f"{best.cost:,.12g}", family.cost, scores)


def replay(journal: Path, folder: Path, points: Sequence[float] = ()) -> dict[str, Any]:
    """The result of a finished search from its journal alone: its genotype, table and pictures, in a folder."""
    from callbacks.search import SearchHistory
    from esformer.search.stage import replay as rebuild
    from pipelines.runtime.run_folder import RunError, show, start_logging

    start_logging()
    genotype = folder / "genotype.yaml"
    if genotype.exists():
        raise RunError(f"{genotype} exists already; choose another run.dir")
    history = SearchHistory(folder)
    result = rebuild(journal, callbacks=[history])
    result.genotype.save(genotype, comment=f"rebuilt from {journal}\nof {result.evaluations} evaluations")
    summary = {
        "journal": str(journal),
        "genotype": str(genotype),
        "params": result.cost.params,
        "macs": result.cost.macs,
        "search_evaluations": result.evaluations,
        "search_seconds": result.seconds,
        "search_score": result.scores,
    }
    show(summary)
    if points:
        write_points(journal, folder, points, history.references)
    return summary


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Search alone: a genotype file comes out."""
    config, flags = cli.parse_with(__doc__, argv, FLAGS)
    if flags.speed is not None:
        from pipelines.timing.speed import speed

        return speed(config, flags.speed, flags.late)
    if flags.dry_run:
        from pipelines.runtime.dry_run import dry_run

        return dry_run("search", config, argv)
    if flags.replay:
        folder = Path(config.run.dir) if config.run.dir else flags.replay.parent / "replay"
        return replay(flags.replay, folder, flags.points)
    if flags.points and config.search.family is None:
        raise ConfigError("--points are those of a family: set search.family to macs, params or latency_ms too")
    from esformer.search.family import references
    from pipelines.runtime.build import prepare, search_stage
    from pipelines.runtime.finalists import choose
    from pipelines.runtime.run_folder import is_main

    with prepare("search", config, argv) as (run, loggers):
        check_points(config, flags.points)
        summary = run.finished()
        if summary is None:
            chosen = choose(config, flags, run, loggers, search(config, run, loggers))
            found = search_summary(config, run, chosen.genotype) | chosen.summary
            summary = run.finish({**found, "commands": [run.command]})
        if flags.points and is_main():
            write_points(run.journal, run.path, flags.points, references(search_stage(config)))
        return summary


if __name__ == "__main__":
    cli.run(main)
