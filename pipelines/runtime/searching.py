"""The search stage, and what is left of a search: its summary, its family, and all of it from a journal alone."""

import csv
import io
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from callbacks.progress import SearchProgress
from callbacks.search import SearchHistory, SearchLog, StopWhenAsked
from configs.budget import explain_auto, price_of
from configs.schema import AUTO, Config, ConfigError
from esformer.benchmarks.architecture import GeneArchitecture
from esformer.benchmarks.gene_space import GeneSpace
from esformer.choices import size_of
from esformer.files import write_text
from esformer.genotype import Genotype
from esformer.plots.family import draw_family
from esformer.proxies import get, score
from esformer.search.callback import SearchResult
from esformer.search.family import read_family, write_family
from esformer.search.journal import JournalError, read
from esformer.search.ranking import Scored
from esformer.search.replay import replay as rebuild
from esformer.space import SearchSpace
from esformer.text import number
from pipelines.runtime.build import search_fabric
from pipelines.runtime.console import show, show_rows
from pipelines.runtime.logs import is_main, start_logging
from pipelines.runtime.notify import notify
from pipelines.runtime.plan import Plan
from pipelines.runtime.run_folder import RunError
from pipelines.runtime.signals import stop
from pipelines.runtime.tracking import log_genotype

log = logging.getLogger("esformer")

PROXIES = ("entropic_score", "log_synflow")
"""What a genotype is scored with in the end, whatever guided its search."""
UNSEEN = 2**31
"""Added to a search's seed for these scores. A search finds what its draws favour most (the winner's curse), so its own
scores flatter it."""


def search(plan: Plan, loggers: list[Logger]) -> Genotype:
    """The search stage: runs it, or goes on with it; leaves `genotype.yaml` and `search.png` in the run's folder."""
    config, run, stage = plan.config, plan.run, plan.stage
    assert stage is not None
    if run.genotype.exists():
        genotype = Genotype.load(run.genotype)
        if genotype not in SearchSpace.for_size(config.size, config.search.extended):
            raise RunError(f"{run.genotype} is of space {genotype.space}, which this run does not search")
        return genotype
    result = run_stage(plan, loggers)
    assert isinstance(result.genotype, Genotype)
    if is_main():
        result.genotype.save(run.genotype, comment=found_by(plan, result))
        log_genotype(loggers, result.genotype, params=result.cost.params, macs=result.cost.macs)
        if plan.pipeline == "full":
            notify(plan, "search", "finished")
    stage.fabric.barrier()
    return result.genotype


def compare(plan: Plan, found: Genotype) -> None:
    """Print what was found beside EfficientFormerV2 of the size, by the search's guide and in draws that none saw.

    It is kept in `compared.csv` too.
    """
    if not is_main():
        return
    config = plan.config
    name = size_of(config.size).reference
    networks = (found, Genotype.shipped(name))
    prices = [price_of(config, genotype) for genotype in networks]
    rows = [["", "found", name]]
    rows += [[what, *(f"{getattr(price, what):,}" for price in prices)] for what in ("params", "macs")]
    if plan.stage is not None and (latency := plan.stage.latency) is not None:
        predicted = (latency(genotype, config.data.known_classes) for genotype in networks)
        rows.append(["predicted latency", *(f"{ms:.3g} ms" for ms in predicted)])
    searched = [None if plan.stage is None else plan.stage.score(genotype) for genotype in networks]
    for proxy in searched[0] or ():
        rows.append([f"{proxy}, as searched", *(number(scores[proxy]) for scores in searched if scores)])
    for proxy in PROXIES:
        scores = (score(proxy, genotype, config.seed ^ UNSEEN, get(proxy).search_img_size) for genotype in networks)
        rows.append([f"{proxy}, in other draws", *map(number, scores)])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(plan.run.compared, text.getvalue())
    show_rows(rows)


def run_stage(plan: Plan, loggers: list[Logger]) -> SearchResult:
    """Run the search stage, or go on with it, with all that shows people how it goes."""
    config, run, stage = plan.config, plan.run, plan.stage
    assert stage is not None
    progress = SearchProgress(bar=sys.stdout.isatty() and is_main())
    # a signal ends the search at once, but where Python was in a place in which it loses exceptions
    last = StopWhenAsked(lambda: stop.asked)
    fabric = search_fabric(plan, [progress, SearchHistory(run.path, written=run.report), SearchLog(), last], loggers)
    fabric.launch()
    stage.fabric, stage.checkpoint = fabric, run.journal
    log.info("space %s holds %.3g genotypes", stage.space.name, stage.space.cardinality)
    if config.budget.macs == AUTO:
        log.info("budget.macs=%s: %s", AUTO, explain_auto(config))
    return stage.run()


def search_other(plan: Plan, loggers: list[Logger]) -> dict[str, Any]:
    """The search of another space: `architecture.yaml`, and how good that is among all of known accuracy."""
    result = run_stage(plan, loggers)
    assert plan.stage is not None
    space, found, file = plan.stage.space, result.genotype, plan.run.path / "architecture.yaml"
    if is_main():
        found.save(file, comment=found_by(plan, result))
    log_genotype(loggers, found, params=result.cost.params, macs=result.cost.macs)
    standing = None
    if isinstance(space, GeneSpace) and isinstance(found, GeneArchitecture):
        standing = space.standing(found, plan.stage.budget)
    log.info("%s is found%s", found, "" if standing is None else f": {standing}")
    if (ties := count_ties(result)) > 1:
        log.info("%d of the architectures evaluated have its score; it is the first of them that was met", ties)
    return {
        "space": space.name,
        "architecture": str(found),
        "genotype": str(file),
        "params": result.cost.params,
        "macs": result.cost.macs,
        "search_evaluations": result.evaluations,
        "search_seconds": result.seconds,
        "search_score": result.scores,
        "search_ties": ties,
        **({} if standing is None else asdict(standing)),
    }


def count_ties(result: SearchResult) -> int:
    """How many architectures of those that the search evaluated have the scores of the one that it found."""
    tied = (str(line.genotype) for line in result.journal if line.scores == result.scores)
    return len({*tied})


def found_by(plan: Plan, result: SearchResult) -> str:
    """What heads the file of what was found."""
    return f"found by: {plan.run.command}\nin {result.evaluations} evaluations"


def search_summary(plan: Plan, genotype: Genotype) -> dict[str, Any]:
    """What `summary.json` says of the search."""
    run, price = plan.run, price_of(plan.config, genotype)
    last, found = None, None
    for evaluation in read(run.journal):
        last = evaluation
        if evaluation.genotype == genotype.to_dict():
            found = evaluation
    if last is None:
        raise JournalError(f"{run.journal} holds no evaluation, but {run.genotype} was found; choose another run.dir")
    return {
        "size": plan.config.size,
        "genotype": str(run.genotype),
        "params": price.params,
        "macs": price.macs,
        "search_evaluations": last.evaluation,
        "search_seconds": last.elapsed,
        "search_score": {} if found is None else found.scores,
        **({} if found is None or found.latency_ms is None else {"latency_ms": found.latency_ms}),
    }


def check_points(config: Config, points: Sequence[float]) -> None:
    """Refuse costs that no genotype is as cheap as, before there is a search for them.

    Raises:
        ConfigError: says what the cheapest costs.
    """
    if not points or (name := config.search.family) not in ("macs", "params"):
        return
    space = SearchSpace.for_size(config.size, config.search.extended)

    def weigh(genotype: Genotype) -> float:
        price = price_of(config, genotype)
        return float(getattr(price, name))

    if (point := min(points)) < (least := weigh(space.cheapest(weigh))):
        raise ConfigError(
            f"--points asks for {point:,.12g} {name}; the cheapest genotype of space {space.name} has {least:,.12g}"
        )


def write_points(journal: Path, folder: Path, points: Sequence[float], references: dict[str, Scored]) -> None:
    """Write the best genotype within each cost as `family/COST.yaml` in a folder, and show them in `front.png`.

    Raises:
        ESFormerError: nothing was found that costs as little as one of them.
    """
    family = read_family(journal)
    files = write_family(family, folder, points)
    draw_family(family, folder / "front.png", {point: family.best(point) for point in points}, references)
    for point, file in files.items():
        best = family.best(point)
        scores = ", ".join(f"{name} {score:.6g}" for name, score in best.scores.items())
        log.info("%s: %s %s, %s", file, f"{best.cost:,.12g}", family.cost, scores)


def replay(journal: Path, folder: Path, points: Sequence[float] = ()) -> dict[str, Any]:
    """The result of a finished search from its journal alone: its genotype, table and pictures, in a folder."""
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
