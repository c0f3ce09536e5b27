"""Survey: train many networks with one recipe, and keep what each reaches in a table.

Draws genotypes that answer what is better at equal cost (or takes those that --genotypes names), trains each on the
data and with the recipe of the configuration, and adds a line to trainings.csv as soon as one is done. Killed, the same
command goes on, in the middle of a training too; with more --networks or --workers it adds to the same folder.
The table is read by `python -m pipelines.correlate --benchmark esformer --table DIR/trainings.csv`.
"""

import csv
import io
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from configs.schema import Config, ConfigError
from esformer.errors import ESFormerError
from pipelines.runtime import cli

if TYPE_CHECKING:
    from esformer.benchmarks.draws import Draw
    from esformer.benchmarks.esformers import Training
    from pipelines.runtime.run_folder import RunFolder
    from pipelines.runtime.trainings import Job

log = logging.getLogger("esformer")

REPEATED = 8
"""Of the drawn genotypes every eighth, from the first on, is trained with each seed; the others with the first."""

FLAGS: dict[str, dict[str, Any]] = {
    "--networks": dict(metavar="N", type=int, default=100, help="genotypes to draw (default 100)"),
    "--genotypes": dict(
        metavar="A,B,...",
        help="train these instead, each with every seed: genotype files, or names of shipped ones",
    ),
    "--seeds": dict(metavar="N", type=int, default=3, help="trainings of a genotype that is repeated (default 3)"),
    "--known": dict(
        metavar="TABLE",
        type=cli.path,
        help="begin with the lines of this table of the same protocol, such as the shipped one; adds to them",
    ),
    "--workers": dict(metavar="N", type=int, default=1, help="trainings at a time; GPUs are dealt out (default 1)"),
}


class SurveyError(ESFormerError):
    """A survey that cannot be made, or go on; says what is in the way."""


def jobs(config: Config, arguments: Any, folder: Path, done: set[tuple[str, int]]) -> "Iterator[Job]":
    """The trainings that the table lacks, in order; each genotype is drawn when it is asked for."""
    from esformer.genotype import notation
    from pipelines.runtime.trainings import Job

    for index, draw in enumerate(named(config, arguments) if arguments.genotypes else drawn(config, arguments, folder)):
        repeated = arguments.genotypes or index % REPEATED == 0
        for seed in range(config.seed, config.seed + (arguments.seeds if repeated else 1)):
            if (notation(draw.genotype), seed) not in done:
                place = folder / "networks" / f"{index:04}-{draw.genotype.digest}-{seed}"
                yield Job(draw.genotype, draw.drawn, seed, place)


def named(config: Config, arguments: Any) -> "Iterator[Draw]":
    """The genotypes that a person names."""
    from dataclasses import replace

    from esformer.benchmarks.draws import Draw
    from pipelines.runtime.start import given_genotype

    for name in arguments.genotypes.split(","):
        yield Draw(Path(name).stem, given_genotype(replace(config, genotype=name)))


def drawn(config: Config, arguments: Any, folder: Path) -> "Iterator[Draw]":
    """The genotypes of the survey's draws; kept in a file, for some take minutes to find."""
    from esformer.benchmarks.draws import Draws, shipped_reference
    from esformer.model.cost import Budget
    from esformer.space import SearchSpace

    data, space = config.data, SearchSpace.for_size(config.size)
    budget = Budget.for_size(config.size).params
    assert data.num_classes is not None and budget is not None
    draws = Draws(space, shipped_reference(config.size), budget, data.img_size, data.num_classes, config.seed)
    file = folder / "draws.csv"
    known = _read_draws(file) if file.exists() else []
    for index in range(arguments.networks):
        if index == len(known):
            known.append(draws[index])
            _write_draws(file, known)
        yield known[index]


def collect(job: "Job", config: Config) -> "Training":
    """The line of a training that has ended; its checkpoints go."""
    from esformer.benchmarks.esformers import Training
    from esformer.genotype import notation
    from esformer.model.cost import cost
    from pipelines.runtime.trainings import Reached

    assert config.data.num_classes is not None
    price, reached = cost(job.genotype, config.data.img_size, config.data.num_classes), Reached.read(job.folder)
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    return Training(
        genotype=notation(job.genotype),
        drawn=job.origin,
        seed=job.seed,
        params=price.params,
        macs=price.macs,
        top1=reached.top1,
        ema_top1=reached.ema_top1,
        seconds=reached.seconds,
        versions=_versions(),
    )


def survey(config: Config, arguments: Any, run: "RunFolder") -> "list[Training]":
    """Make the trainings that the table lacks; every one is in it as soon as it is done."""
    from esformer.benchmarks.esformers import read_trainings, write_trainings
    from pipelines.runtime.trainings import Trainings, visible_gpus

    table = run.path / "trainings.csv"
    if arguments.known and not table.exists():
        write_trainings(table, read_trainings(arguments.known))
    trainings = read_trainings(table) if table.exists() else []
    done = {(training.genotype, training.seed) for training in trainings}
    coming = jobs(config, arguments, run.path, done)
    at_work = Trainings(config, arguments, arguments.workers, visible_gpus(config))
    began, before = time.monotonic(), len(trainings)
    try:
        while True:
            for job in islice(coming, arguments.workers - len(at_work.running)):
                at_work.start(job)
            if not at_work.running:
                return trainings
            time.sleep(0.2)
            for job in at_work.finished():
                trainings.append(collect(job, config))
                write_trainings(table, trainings)
                pace = (time.monotonic() - began) / (len(trainings) - before)
                _say(trainings[-1], len(trainings), pace)
    finally:
        at_work.stop()


def _say(training: "Training", number: int, pace: float) -> None:
    log.info(
        "%d: %s, seed %d, %.2f M parameters, %.1f M MACs: top-1 %.2f %% (averaged weights %s), %s a network",
        *(number, training.drawn, training.seed, training.params / 1e6, training.macs / 1e6, training.top1[-1]),
        f"{training.ema_top1[-1]:.2f} %" if training.ema_top1 else "none",
        timedelta(seconds=round(pace)),
    )


def _versions() -> str:
    from importlib.metadata import version

    from esformer.version import code_version

    libraries = (f"{name} {version(name)}" for name in ("torch", "timm", "lightning"))
    return ", ".join([f"esformer {code_version()}", *libraries])


def _read_draws(file: Path) -> "list[Draw]":
    from esformer.benchmarks.draws import Draw
    from esformer.files import read_text
    from esformer.genotype import parse

    draws = []
    for number, row in enumerate(csv.reader(read_text(file).splitlines()), 1):
        try:
            drawn, genotype = row
            draws.append(Draw(drawn, parse(genotype)))
        except ValueError as error:
            raise SurveyError(
                f"{file}: line {number} holds no draw ({error}); remove the file, and all are drawn anew"
            ) from None
    return draws


def _write_draws(file: Path, draws: "Sequence[Draw]") -> None:
    from esformer.files import write_text
    from esformer.genotype import notation

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((draw.drawn, notation(draw.genotype)) for draw in draws)
    write_text(file, text.getvalue())


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """A table of trained networks."""
    config, arguments = cli.parse_with(__doc__, argv, FLAGS)
    for name in ("networks", "seeds", "workers"):
        if not 1 <= getattr(arguments, name) <= 100_000:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}; it must be from 1 to 100,000")
    from pipelines.runtime.build import check
    from pipelines.runtime.processes import processes
    from pipelines.runtime.run_folder import RunFolder, show

    if (found := processes(config).world_size) > 1:
        raise ConfigError(
            f"a survey is one process with --workers that have a device each, but {found} processes were asked for;"
            " leave trainer.devices out, and start it once"
        )
    check("survey", config)
    with RunFolder.open("survey", config, argv) as run:
        trainings = survey(config, arguments, run)
        finals = sorted(training.top1[-1] for training in trainings)
        summary = {
            "trainings": len(trainings),
            "genotypes": len({training.genotype for training in trainings}),
            "top1_lowest": finals[0],
            "top1_median": median(finals),
            "top1_highest": finals[-1],
            "table": str(run.path / "trainings.csv"),
        }
        show(summary)
        return summary


if __name__ == "__main__":
    cli.run(main)
