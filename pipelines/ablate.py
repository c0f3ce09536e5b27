"""Ablate: what searches find that differ only in what guides them (Table 5), or beside no search at all.

Every method of ablate.methods searches once for each seed. What was found is scored anew, with draws that no search
saw, and with ablate.train=true trained. The table gives mean and standard deviation over the seeds.

Where nothing else is said, it starts from: --size S1 search=evaluations search.extended=true budget.macs=null (Table 5,
whose one limit is 6 million parameters). Killed, the same command goes on; with other methods, more seeds or
ablate.train=true in the same folder only what is missing is done. The table holds what the last command asked for.
Leaves ablate.csv, ablate.png, and a folder for each search and training: search/METHOD-SEED, training/METHOD-SEED.
"""

import csv
import json
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from configs.compose import to_yaml
from configs.schema import Config, ConfigError, RunConfig, WandbConfig
from esformer.choices import EXTENDED, choices_of
from esformer.errors import ESFormerError
from pipelines.runtime import cli

if TYPE_CHECKING:
    from esformer.genotype import Genotype
    from pipelines.runtime.run_folder import RunFolder

log = logging.getLogger("esformer")

SUM = "entropic_score+log_synflow"
PROXIES = ("entropic_score", "log_synflow")
"""What every genotype is scored with in the end, whatever guided its search."""
REFERENCE = "efficientformerv2"
METHODS = ("decoupled", "sum", "random", REFERENCE)
"""The methods that are not named after proxies."""
UNSEEN = 2**31
"""Added to a search's seed for the scores of the table. A search finds what its draws favour most (the winner's curse),
so its own scores flatter it."""
ENDLESS = 10**9
"""More genotypes than a search ever scores: a population of so many is never bred from."""

Row = dict[str, Any]
"""A line of `ablate.csv`: what one method found with one seed."""


@dataclass(frozen=True)
class Entry:
    """What one method does with one seed: a run of pipelines.search, and perhaps one of pipelines.train.

    Args:
        method: what guides the search.
        seed: of the search and of the training.
        arguments: with which pipelines.search does the same alone.
    """

    method: str
    seed: int
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}"

    @cached_property
    def config(self) -> Config:
        return cli.parse("", self.arguments)


def settings_of(method: str, total: float) -> list[str]:
    """What makes a search one that this method guides.

    Args:
        method: its name.
        total: the length of the search.
    """
    if method in ("decoupled", REFERENCE):
        return ["search.joint_proxy=null"]
    if method == "random":
        return [
            "search.starts=1",
            f"search.start_length={total}",
            f"search.start_population={ENDLESS}",
            f"search.start_proxy={SUM}",
        ]
    proxy = SUM if method == "sum" else method
    return [f"search.start_proxy={proxy}", f"search.joint_proxy={proxy}"]


def plan(argv: Sequence[str]) -> tuple[Config, list[Entry]]:
    """What a command line asks for, and what is to be done for it, seed by seed.

    Raises:
        ConfigError: there is no such method, or not so many seeds.
    """
    defaults = ["--size", "S1", "search.extended=true", "budget.macs=null"]
    defaults += [] if "--quick" in argv else ["search=evaluations"]
    config, given = cli.parse_with(__doc__, [*defaults, *argv], {})
    check_methods(config.ablate.methods)
    if config.search.finalists:
        raise ConfigError("search.finalists is for pipelines.full and pipelines.search; an ablation compares searches")
    if config.seed + config.ablate.seeds > UNSEEN:
        raise ConfigError(f"seed is {config.seed}; an ablation's seeds must stay below {UNSEEN}")
    shared = ["--size", config.size, *(["--quick"] if given.quick else [])]
    shared += [setting for setting in given.settings if not setting.startswith(("ablate.", "run.dir=", "seed="))]
    entries = [
        Entry(method, seed, (*shared, *settings_of(method, config.search.total), f"seed={seed}"))
        for seed in range(config.seed, config.seed + config.ablate.seeds)
        for method in dict.fromkeys(config.ablate.methods)
    ]
    return config, entries


def check_methods(methods: Sequence[str]) -> None:
    """Refuse a method that there is not."""
    asked = [name for name in methods if name not in METHODS]
    if not asked:
        return
    from esformer.guide import Guide
    from esformer.proxies import names

    known = names()
    for name in asked:
        try:
            unknown = set(Guide.parse(name).proxies) - set(known)
        except ESFormerError:
            unknown = {name}
        if unknown:
            there = ", ".join((*METHODS, *known))
            raise ConfigError(f"ablate.methods: there is no method {name!r}; there are {there}, and sums such as {SUM}")


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Search with every method and seed, compare what was found, and train it if asked to."""
    argv = sys.argv[1:] if argv is None else list(argv)
    config, entries = plan(argv)
    from pipelines.runtime.run_folder import RunFolder, is_main, start_logging

    start_logging()
    check(config, entries, argv)
    space = config.size + (EXTENDED if config.search.extended else "")
    command = shlex.join(["python", "-m", "pipelines.ablate", *argv])
    with RunFolder(Path(config.run.dir or f"runs/ablate-{space}"), command) as run:
        if is_main():
            run.claim("python -m pipelines.ablate", identity(config))
        run.log_to_file()
        rows = []
        for number, entry in enumerate(entries, start=1):
            log.info("%d of %d: %s, seed %d", number, len(entries), entry.method, entry.seed)
            rows.append(find(entry, config, run))
        publish(rows, space, run)
        if config.ablate.train:
            rows = [row | train(entry, config, run) for entry, row in zip(entries, rows, strict=True)]
            publish(rows, space, run)
        send(rows, config, run)
    return rows


def check(config: Config, entries: Sequence[Entry], argv: Sequence[str]) -> None:
    """Refuse what cannot be searched or trained before anything is. Finds and counts the images, if there are any."""
    from pipelines.runtime.build import prepare, search_stage

    with TemporaryDirectory() as scratch:  # a run that starts, and ends at once
        tried = replace(config, run=RunConfig(scratch), wandb=WandbConfig("disabled"))
        with prepare("full" if config.ablate.train else "search", tried, argv):
            config.data = tried.data
    for entry in entries:
        if entry.seed == config.seed and entry.method != REFERENCE:
            search_stage(replace(entry.config, data=config.data))


def identity(config: Config) -> str:
    """What all searches of an ablation share, as YAML: more methods, seeds or trainings may join them."""
    import yaml

    data = {"img_size": config.data.img_size, "num_classes": config.data.num_classes}
    parts = {"search": asdict(config.search), "budget": asdict(config.budget), "data": data}
    return yaml.safe_dump({"size": config.size, "seed": config.seed, **parts}, sort_keys=False)


def find(entry: Entry, config: Config, ablation: "RunFolder") -> Row:
    """What a method finds with a seed, what it costs and how it scores; searched only if that is not known yet."""
    from configs.budget import price_of
    from esformer.files import write_text
    from esformer.proxies import score
    from pipelines.runtime.run_folder import RunFolder, is_main
    from pipelines.runtime.searching import search, search_summary

    command = shlex.join(["python", "-m", "pipelines.search", *entry.arguments])
    run = RunFolder(ablation.path / "search" / entry.name, command)
    kinds = choices_of("S0" + EXTENDED).ffn
    numbers = ("seed", "params", "macs", *PROXIES, *kinds, "evaluations", "seconds")
    if run.genotype.exists() and (known := _known(run.summary, numbers)):
        return known | {"method": entry.method, "seed": entry.seed}
    if is_main():  # the others would be there before it has claimed the folder
        run.path.mkdir(parents=True, exist_ok=True)
    config = replace(entry.config, data=config.data)
    if entry.method == REFERENCE:
        genotype, spent = reference(config, run), {"search_evaluations": 0, "search_seconds": 0.0}
    else:
        genotype = search(config, run, [])
        spent = search_summary(config, run, genotype)
    price = price_of(config, genotype)
    counts = Counter(block.ffn for block in genotype.blocks())
    row: Row = {
        "method": entry.method,
        "seed": entry.seed,
        "params": price.params,
        "macs": price.macs,
        **{proxy: score(proxy, genotype, seed=UNSEEN + entry.seed) for proxy in PROXIES},
        **{kind: counts[kind] for kind in kinds},
        "evaluations": spent["search_evaluations"],
        "seconds": spent["search_seconds"],
        "genotype": str(run.genotype.relative_to(ablation.path)),
    }
    if is_main():
        write_text(run.summary, json.dumps(row, indent=1) + "\n")
    return row


def reference(config: Config, run: "RunFolder") -> "Genotype":
    """EfficientFormerV2's genotype of the size, as if a search had found it."""
    from esformer.genotype import Genotype
    from esformer.space import SearchSpace
    from pipelines.runtime.run_folder import is_main

    name = f"{REFERENCE}_{config.size.lower()}"
    genotype, space = Genotype.shipped(name), SearchSpace.for_size(config.size, config.search.extended)
    if genotype not in space:
        raise ESFormerError(f"{name} is of space {genotype.space}, which is no part of {space.name}")
    if is_main():
        genotype.save(run.genotype, comment=f"the shipped {name}")
    return genotype


def train(entry: Entry, config: Config, ablation: "RunFolder") -> Row:
    """What the genotype reaches when it is trained; trained only if that is not known yet.

    Raises:
        RunError: it was trained with another recipe or on other data.
    """
    from pipelines import train as training
    from pipelines.runtime.run_folder import RunFolder

    genotype = ablation.path / "search" / entry.name / "genotype.yaml"
    run = RunFolder(ablation.path / "training" / entry.name, ablation.command)
    group = config.wandb.group or ablation.path.resolve().name
    arguments = [*entry.arguments, f"genotype={genotype}", f"run.dir={run.path}", f"wandb.group={group}"]
    if reached := _known(run.summary, ("top1",)):
        settings = to_yaml(replace(cli.parse("", arguments), data=config.data))
        run.agree(run.config, "python -m pipelines.train", settings)
    else:
        log.info("training what %s found with seed %d", entry.method, entry.seed)
        reached = training.main(arguments)
        ablation.log_to_file()  # whoever closes a folder stops writing to every file
    return {"top1": reached["top1"], "ema_top1": reached.get("ema_top1")}


def _known(file: Path, numbers: Sequence[str]) -> Row | None:
    """What a summary says already; None if it is not there, is damaged, or lacks one of these numbers."""
    from pipelines.runtime.run_folder import read_summary

    known = read_summary(file) or {}
    return known if all(type(known.get(name)) in (int, float) for name in numbers) else None


COLUMNS = {
    "params": ("params [M]", 1e-6, 2),
    "macs": ("MACs [G]", 1e-9, 3),
    "entropic_score": ("Entropic Score", 1.0, 2),
    "log_synflow": ("LogSynflow [1e6]", 1e-6, 1),
    **{kind: (kind, 1.0, 1) for kind in choices_of("S0" + EXTENDED).ffn},
    "top1": ("top-1 [%]", 100.0, 2),
    "ema_top1": ("EMA top-1 [%]", 100.0, 2),
}
"""The columns of the printed table: a heading, what a value is multiplied by, and how many digits are shown."""


def by_method(rows: Sequence[Row], column: str) -> dict[str, list[float]]:
    """The values of a column, one for each seed, of each method that has any."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.get(column) is not None:
            values.setdefault(row["method"], []).append(row[column])
    return values


def publish(rows: Sequence[Row], space: str, run: "RunFolder") -> None:
    """Leave `ablate.csv` and `ablate.png`, and print the table (as Markdown too reads it)."""
    from rich.box import MARKDOWN

    from esformer.files import write_text
    from pipelines.runtime.report import show_rows
    from pipelines.runtime.run_folder import is_main

    if not is_main():
        return
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(run.path / "ablate.csv", text.getvalue())
    draw(rows, space, run.path / "ablate.png")
    show_rows(summary(rows), box=MARKDOWN)
    log.info("%s holds ablate.csv, ablate.png and every genotype under search/", run.path)


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """A head, and for each method the mean and standard deviation over its seeds."""
    values = {column: by_method(rows, column) for column in COLUMNS if by_method(rows, column)}
    lines = [["method", "seeds", *(COLUMNS[column][0] for column in values)]]
    for method, params in values["params"].items():
        cells = [_spread(values[column].get(method, []), *COLUMNS[column][1:]) for column in values]
        lines.append([method, str(len(params)), *cells])
    return lines


def _spread(values: Sequence[float], factor: float, digits: int) -> str:
    """Mean and standard deviation, as far as there are values for them."""
    figures = [mean(values)] if values else []
    if len(values) > 1:
        figures.append(stdev(values))
    return " ± ".join(f"{factor * figure:.{digits}f}" for figure in figures)


def draw(rows: Sequence[Row], space: str, path: Path) -> None:
    """Draw the scores of every genotype, the FFN kinds of each method, and the accuracies where there are any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    methods = list(dict.fromkeys(row["method"] for row in rows))
    trained = any("top1" in row for row in rows)
    figure, axes = plt.subplots(1, 2 + trained, figsize=(9 + 4 * trained, 3.8), layout="constrained")
    scores, kinds = axes[:2]
    entropic, synflow = (by_method(rows, proxy) for proxy in PROXIES)
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
    plt.close(figure)


def send(rows: Sequence[Row], config: Config, run: "RunFolder") -> None:
    """Send table and picture to W&B, as a run of its own beside those of the trainings."""
    from pipelines.runtime.tracking import loggers

    for logger in loggers(config, run):
        logger.log_table("ablate", list(rows[0]), [list(row.values()) for row in rows])
        logger.log_image("ablate/picture", [str(run.path / "ablate.png")])
        logger.experiment.finish()


if __name__ == "__main__":
    cli.run(main)
