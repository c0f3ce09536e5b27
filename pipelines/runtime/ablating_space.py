"""An ablation where the truth is known: what accuracies searches find that differ in guide or algorithm."""

import json
import logging
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from rich.box import MARKDOWN

from configs.schema import Config, ConfigError, SearchConfig
from esformer.benchmarks.architecture import GeneArchitecture
from esformer.benchmarks.gene_space import GeneSpace
from esformer.errors import ESFormerError
from esformer.files import write_text
from esformer.guide import Guide
from esformer.plots.ablation import by_method
from esformer.plots.regret import draw_regret, mean_interval
from esformer.proxies import names
from esformer.search.journal import read, read_header
from esformer.search.schedule import Schedule
from esformer.search.trajectory import Trajectory
from pipelines.runtime.ablating import (
    ENDLESS,
    Entry,
    Row,
    check_seeds,
    entries_of,
    find_all,
    known_numbers,
    send,
    write_rows,
)
from pipelines.runtime.build import search_fabric, search_stage
from pipelines.runtime.console import show_rows
from pipelines.runtime.logs import is_main
from pipelines.runtime.plan import Plan
from pipelines.runtime.preflight import preflight
from pipelines.runtime.run_folder import RunFolder
from pipelines.runtime.searching import search_other

log = logging.getLogger("esformer")

DECOUPLED = "decoupled"
"""The method that has its guides from the settings of the search."""
NUMBERS = ("accuracy", "rank", "among", "best", "regret", "params", "macs", "search_evaluations", "search_seconds")
"""What a row has of a search's summary."""


def variants(search: SearchConfig) -> dict[str, dict[str, Any]]:
    """The ways to search: the settings in which each differs from the search as it is configured, which has no name."""
    one = {"starts": 1, "start_length": search.total}
    large = {"start_population": search.population, "start_tournament": search.tournament}
    return {
        "": {},
        "random": one | {"start_population": ENDLESS},
        "rea": one | large | {"mutated_genes": 1, "crossover": False},
        "one-phase": one | large,
        "one-start": {"starts": 1, "start_length": search.starts * search.start_length},
        "one-gene": {"mutated_genes": 1},
        "no-crossover": {"crossover": False},
    }


def ablate_space(config: Config, arguments: Namespace, argv: Sequence[str]) -> list[Row]:
    """Search a table with every method and seed, and compare the accuracies of what was found.

    Args:
        config: what all searches share, and what is compared.
        arguments: the command line; its settings are those of the searches.
        argv: the same, for the command by which the folder is known.

    Raises:
        ESFormerError: it cannot be searched; said before anything is.
    """
    plan = preflight("ablate", config, argv)
    assert plan.stage is not None
    space = plan.stage.space
    if not isinstance(space, GeneSpace) or "accuracy" not in space.scores:
        raise ConfigError(
            f"an ablation compares accuracies, and none of space {space.name} are known: they are those of a --table"
        )
    check_seeds(config)
    entries = entries_of(plan.config, arguments, lambda method: settings_of(method, config.search, space))
    for entry in entries:
        if entry.seed == config.seed:
            search_stage(entry.config, space=space)
    with plan.run:
        rows = find_all(entries, plan, lambda entry: find(entry, plan, space))
        publish(rows, plan, space)
        send(rows, plan)
    return rows


def settings_of(method: str, search: SearchConfig, space: GeneSpace) -> dict[str, Any]:
    """The settings of a search by this method: GUIDE or GUIDE@VARIANT.

    Raises:
        ConfigError: there is none.
    """
    guide, at, variant = method.partition("@")
    known, ways = {*names(), *space.scores}, variants(search)
    if (at and not variant) or variant not in ways:
        raise ConfigError(
            f"ablate.methods: there is no variant {variant!r}; after @ there can be {', '.join(filter(None, ways))}"
        )
    if guide == DECOUPLED:
        return ways[variant] | {"joint_proxy": None}
    try:
        strangers = {*Guide.parse(guide).proxies} - known
    except ESFormerError:
        strangers = {guide}
    if strangers:
        raise ConfigError(
            f"ablate.methods: there is no method {method!r}; a method is {DECOUPLED}, {', '.join(sorted(known))},"
            " or a sum such as naswot + log_synflow, alone or with a variant such as @rea"
        )
    return ways[variant] | {"start_proxy": guide, "joint_proxy": guide}


def find(entry: Entry, plan: Plan, space: GeneSpace) -> Row:
    """What a method finds with a seed; searched only if that is not known yet."""
    run = RunFolder(
        plan.run.path / "search" / entry.name, shlex.join(["python", "-m", "pipelines.search", *entry.arguments])
    )
    if not (known := known_numbers(run.summary, NUMBERS)):
        if is_main():  # the others would be there before it has claimed the folder
            run.path.mkdir(parents=True, exist_ok=True)
        stage = search_stage(entry.config, search_fabric(plan), space)
        own = replace(plan, pipeline="search", config=entry.config, run=run, stage=stage)
        known = search_other(own, [])
        if is_main():
            write_text(run.summary, json.dumps(known, indent=1) + "\n")
    numbers = {name.removeprefix("search_"): known[name] for name in NUMBERS}
    return {"method": entry.method, "seed": entry.seed, **numbers, "architecture": known["architecture"]}


def publish(rows: Sequence[Row], plan: Plan, space: GeneSpace) -> None:
    """Leave `ablate.csv` and `ablate.png`, and print the table (as Markdown too reads it)."""
    if not is_main():
        return
    run = plan.run
    write_rows(rows, run.path / "ablate.csv")
    draw_regret(on_the_way(rows, plan, space), rows, space.name, run.path / "ablate.png")
    show_rows(summary(rows), box=MARKDOWN)
    log.info("%s holds ablate.csv, ablate.png and every journal under search/", run.path)


def on_the_way(rows: Sequence[Row], plan: Plan, space: GeneSpace) -> Mapping[str, np.ndarray]:
    """By method, seeds x evaluations: the accuracy of what the guide had prized most in the phase until then."""
    curves: dict[str, list[np.ndarray]] = {}
    for row in rows:
        journal = plan.run.path / "search" / f"{row['method']}-{row['seed']}" / "journal.jsonl"
        trajectory, accuracies = Trajectory(Schedule(**read_header(journal)["schedule"]).steps()), []
        for line in read(journal):
            trajectory.append(line)
            accuracies.append(space.accuracy(GeneArchitecture(space.name, line.genotype["architecture"])))
        places = np.concatenate([span.start + trajectory.best(span) for span in trajectory.spans()])
        curves.setdefault(row["method"], []).append(np.array(accuracies)[places])
    return {method: np.array(several) for method, several in curves.items()}


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """A head, and for each method what its searches found."""
    lines = [["method", "seeds", "accuracy [%]", "95 % interval", "regret", "median rank", "evaluations", "seconds"]]
    columns = ("regret", "rank", "evaluations", "seconds")
    for method, found in by_method(rows, "accuracy").items():
        regret, rank, evaluations, seconds = (by_method(rows, column)[method] for column in columns)
        spread = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
        low, high = mean_interval(found)
        interval = f"{low:.2f} to {high:.2f}" if len(found) > 1 else ""
        cells = [f"{mean(found):.2f}{spread}", interval, f"{mean(regret):.2f}", f"{median(rank):,g}"]
        lines.append([method, str(len(found)), *cells, f"{mean(evaluations):,.0f}", f"{mean(seconds):.1f}"])
    return lines
