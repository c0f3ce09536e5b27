"""An ablation: searches that differ only in what guides them, what they find scored anew, and perhaps trained."""

import csv
import json
import logging
import shlex
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from rich.box import MARKDOWN

from configs.budget import price_of
from configs.compose import to_yaml
from configs.schema import AblateConfig, Config, ConfigError, RunConfig
from esformer.choices import EXTENDED, choices_of, size_of
from esformer.errors import ESFormerError
from esformer.files import write_text
from esformer.genotype import Genotype
from esformer.guide import Guide
from esformer.plots.ablation import by_method, draw_ablation
from esformer.proxies import names, score
from esformer.space import SearchSpace
from pipelines.runtime import tracking
from pipelines.runtime.build import search_fabric, search_stage, try_memory
from pipelines.runtime.console import show_rows
from pipelines.runtime.logs import is_main
from pipelines.runtime.plan import Plan
from pipelines.runtime.preflight import preflight
from pipelines.runtime.run_folder import RunFolder, read_summary
from pipelines.runtime.searching import PROXIES, UNSEEN, search, search_summary
from pipelines.runtime.training import train_alone

log = logging.getLogger("esformer")

SUM = "entropic_score+log_synflow"
REFERENCE = "efficientformerv2"
METHODS = ("decoupled", "sum", "random", REFERENCE)
"""The methods that are not named after proxies."""
ENDLESS = 10**9
"""More genotypes than a search ever scores: a population of so many is never bred from."""

Row = dict[str, Any]
"""A line of `ablate.csv`: what one method found with one seed."""


@dataclass(frozen=True)
class Entry:
    """What one method does with one seed: a search, and perhaps a training.

    Args:
        method: what guides the search.
        seed: of the search and of the training.
        config: of the search.
        arguments: with which pipelines.search does the same alone.
    """

    method: str
    seed: int
    config: Config
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}"


def ablate(config: Config, arguments: Namespace, argv: Sequence[str]) -> list[Row]:
    """Search with every method and seed, compare what was found, and train it if asked to.

    Args:
        config: what all searches share, and what is compared.
        arguments: the command line; its settings are those of the searches.
        argv: the same, for the command by which the folder is known.

    Raises:
        ESFormerError: it cannot be searched or trained; said before anything is.
    """
    check_settings(config)
    plan = preflight("ablate", config, argv)
    entries = entries_of(plan.config, arguments, lambda method: guide_of(method, plan.config.search.total))
    if plan.trains:
        try_memory(plan, None)
    for entry in entries:
        if entry.seed == config.seed and entry.method != REFERENCE:
            search_stage(entry.config)
    with plan.run:
        rows = find_all(entries, plan, lambda entry: find(entry, plan))
        publish(rows, plan)
        if plan.trains:
            rows = [row | train(entry, plan) for entry, row in zip(entries, rows, strict=True)]
            publish(rows, plan)
        send(rows, plan)
    return rows


def find_all(entries: Sequence[Entry], plan: Plan, find: Callable[[Entry], Row]) -> list[Row]:
    """What all methods find with all seeds, in the folder of the ablation.

    Raises:
        RunError: the folder holds another ablation, or another process is at work in it.
    """
    run, rows = plan.run, []
    if is_main():
        run.claim(run.title, identity(plan.config))
    run.log_to_file()
    for number, entry in enumerate(entries, start=1):
        log.info("%d of %d: %s, seed %d", number, len(entries), entry.method, entry.seed)
        rows.append(find(entry))
    return rows


def check_settings(config: Config) -> None:
    """Refuse a method that there is not, and settings that no ablation has.

    Raises:
        ConfigError: says what would be right.
    """
    known = names()
    for name in config.ablate.methods:
        try:
            unknown = name not in METHODS and not set(Guide.parse(name).proxies) <= set(known)
        except ESFormerError:
            unknown = True
        if unknown:
            there = ", ".join((*METHODS, *known))
            raise ConfigError(f"ablate.methods: there is no method {name!r}; there are {there}, and sums such as {SUM}")
    if config.search.finalists:
        raise ConfigError("search.finalists is for pipelines.full and pipelines.search; an ablation compares searches")
    check_seeds(config)


def check_seeds(config: Config) -> None:
    """Refuse seeds whose scores in the end would be those that searches saw.

    Raises:
        ConfigError: says what would be right.
    """
    if config.seed + config.ablate.seeds > UNSEEN:
        raise ConfigError(f"seed is {config.seed}; an ablation's seeds must stay below {UNSEEN}")


def entries_of(config: Config, arguments: Namespace, settings_of: Callable[[str], dict[str, Any]]) -> list[Entry]:
    """What is to be done, seed by seed.

    Args:
        config: what all searches share, and what is compared.
        arguments: the command line.
        settings_of: the settings of a search by a method.

    Raises:
        ConfigError: a method and the settings of the search do not go together.
    """
    given = {"space": arguments.space, "table": arguments.table, "dataset": arguments.dataset}
    shared = ["--size", config.size, *(["--quick"] if arguments.quick else [])]
    shared += [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    shared += [setting for setting in arguments.settings if not setting.startswith(("ablate.", "run.dir=", "seed="))]
    entries = []
    for seed in range(config.seed, config.seed + config.ablate.seeds):
        for method in dict.fromkeys(config.ablate.methods):
            settings = settings_of(method)
            try:
                search = replace(config.search, **settings)
            except ValueError as error:
                raise ConfigError(f"search.{error}") from None
            own = replace(config, seed=seed, search=search, run=RunConfig(), ablate=AblateConfig())
            words = [f"search.{name}={'null' if value is None else value}" for name, value in settings.items()]
            entries.append(Entry(method, seed, own, (*shared, *words, f"seed={seed}")))
    return entries


def guide_of(method: str, total: float) -> dict[str, Any]:
    """The settings of a search with which this method guides it.

    Args:
        method: its name.
        total: the length of the search.
    """
    if method in ("decoupled", REFERENCE):
        return {"joint_proxy": None}
    if method == "random":
        return {"starts": 1, "start_length": total, "start_population": ENDLESS, "start_proxy": SUM}
    proxy = SUM if method == "sum" else method
    return {"start_proxy": proxy, "joint_proxy": proxy}


def identity(config: Config) -> str:
    """What all searches of an ablation share, as YAML: more methods, seeds or trainings may join them."""
    data = {"img_size": config.data.img_size, "num_classes": config.data.num_classes}
    parts = {"search": asdict(config.search), "budget": asdict(config.budget), "data": data}
    parts |= {} if config.space.name is None else {"space": asdict(config.space)}
    return yaml.safe_dump({"size": config.size, "seed": config.seed, **parts}, sort_keys=False)


def find(entry: Entry, plan: Plan) -> Row:
    """What a method finds with a seed, what it costs and how it scores; searched only if that is not known yet."""
    command = shlex.join(["python", "-m", "pipelines.search", *entry.arguments])
    run = RunFolder(plan.run.path / "search" / entry.name, command)
    kinds = choices_of("S0" + EXTENDED).ffn
    numbers = ("seed", "params", "macs", *PROXIES, *kinds, "evaluations", "seconds")
    if run.genotype.exists() and (known := known_numbers(run.summary, numbers)):
        return known | {"method": entry.method, "seed": entry.seed}
    if is_main():  # the others would be there before it has claimed the folder
        run.path.mkdir(parents=True, exist_ok=True)
    if entry.method == REFERENCE:
        genotype, spent = reference(entry.config, run), {"search_evaluations": 0, "search_seconds": 0.0}
    else:
        stage = search_stage(entry.config, search_fabric(plan))
        own = replace(plan, pipeline="search", config=entry.config, run=run, stage=stage)
        genotype = search(own, [])
        spent = search_summary(own, genotype)
    price = price_of(entry.config, genotype)
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
        "genotype": str(run.genotype.relative_to(plan.run.path)),
    }
    if is_main():
        write_text(run.summary, json.dumps(row, indent=1) + "\n")
    return row


def reference(config: Config, run: RunFolder) -> Genotype:
    """EfficientFormerV2's genotype of the size, as if a search had found it."""
    name = size_of(config.size).reference
    genotype, space = Genotype.shipped(name), SearchSpace.for_size(config.size, config.search.extended)
    if genotype not in space:
        raise ESFormerError(f"{name} is of space {genotype.space}, which is no part of {space.name}")
    if is_main():
        genotype.save(run.genotype, comment=f"the shipped {name}")
    return genotype


def train(entry: Entry, plan: Plan) -> Row:
    """What the genotype reaches when it is trained; trained only if that is not known yet.

    Raises:
        RunError: it was trained with another recipe or on other data.
    """
    genotype = plan.run.path / "search" / entry.name / "genotype.yaml"
    run = RunFolder(plan.run.path / "training" / entry.name, plan.run.command)
    wandb = replace(plan.config.wandb, group=plan.config.wandb.group or plan.run.path.resolve().name)
    config = replace(entry.config, genotype=str(genotype), run=RunConfig(str(run.path)), wandb=wandb)
    if reached := known_numbers(run.summary, ("top1",)):
        run.agree(run.config, "python -m pipelines.train", to_yaml(config))
    else:
        log.info("training what %s found with seed %d", entry.method, entry.seed)
        arguments = [*entry.arguments, f"genotype={genotype}", f"run.dir={run.path}", f"wandb.group={wandb.group}"]
        reached = train_alone(preflight("train", config, arguments), Genotype.load(genotype))
        plan.run.log_to_file()  # whoever closes a folder stops writing to every file
    return {"top1": reached["top1"], "ema_top1": reached.get("ema_top1")}


def known_numbers(file: Path, numbers: Sequence[str]) -> Row | None:
    """What a summary says already; None if it is not there, is damaged, or lacks one of these numbers."""
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


def publish(rows: Sequence[Row], plan: Plan) -> None:
    """Leave `ablate.csv` and `ablate.png`, and print the table (as Markdown too reads it)."""
    if not is_main():
        return
    run, space = plan.run, SearchSpace.for_size(plan.config.size, plan.config.search.extended)
    write_rows(rows, run.path / "ablate.csv")
    draw_ablation(rows, space.name, run.path / "ablate.png")
    show_rows(summary(rows), box=MARKDOWN)
    log.info("%s holds ablate.csv, ablate.png and every genotype under search/", run.path)


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """Write a table with the columns of its first row."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


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


def send(rows: Sequence[Row], plan: Plan) -> None:
    """Send table and picture to W&B, as a run of its own beside those of the trainings."""
    for logger in tracking.loggers(plan.config, plan.run):
        logger.log_table("ablate", list(rows[0]), [list(row.values()) for row in rows])
        logger.log_image("ablate/picture", [str(plan.run.path / "ablate.png")])
        logger.experiment.finish()
