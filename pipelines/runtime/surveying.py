"""The survey: what is trained, and the table to which each training adds a line as soon as it is done."""

import csv
import io
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from configs.schema import Config
from esformer.benchmarks.draws import Draw, Draws, shipped_reference
from esformer.benchmarks.esformers import Training, read_trainings, write_trainings
from esformer.errors import ESFormerError
from esformer.files import read_text, write_text
from esformer.genotype import Genotype, notation, parse
from esformer.model.cost import Budget, cost
from esformer.plots.trainings import draw_trainings
from esformer.space import SearchSpace
from esformer.version import versions
from pipelines.runtime.plan import Plan
from pipelines.runtime.start import given_genotype
from pipelines.runtime.trainings import Job, Reached, Trainings, own_gpus, train_all

log = logging.getLogger("esformer")

REPEATED = 8
"""Of the drawn genotypes every eighth, from the first on, is trained with each seed; the others with the first."""


class SurveyError(ESFormerError):
    """A survey that cannot be made, or go on; says what is in the way."""


def jobs(config: Config, arguments: Any, folder: Path, done: set[tuple[str, int]]) -> Iterator[Job]:
    """The trainings that the table lacks, in order; each genotype is drawn when it is asked for."""
    for index, draw in enumerate(named(config, arguments) if arguments.genotypes else drawn(config, arguments, folder)):
        repeated = arguments.genotypes or index % REPEATED == 0
        for seed in range(config.seed, config.seed + (arguments.seeds if repeated else 1)):
            if (notation(draw.genotype), seed) not in done:
                place = folder / "networks" / f"{index:04}-{draw.genotype.digest}-{seed}"
                yield Job(draw.genotype, draw.drawn, seed, place)


def named(config: Config, arguments: Any) -> Iterator[Draw]:
    """The genotypes that a person names."""
    for name in arguments.genotypes.split(","):
        genotype = given_genotype(replace(config, genotype=name))
        if not isinstance(genotype, Genotype):
            raise SurveyError(f"{name} is of space {genotype.space}; a survey trains ESFormers")
        yield Draw(Path(name).stem, genotype)


def drawn(config: Config, arguments: Any, folder: Path) -> Iterator[Draw]:
    """The genotypes of the survey's draws; kept in a file, for some take minutes to find."""
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


def collect(job: Job, config: Config) -> Training:
    """The line of a training that has ended; its checkpoints go."""
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
        versions=versions(),
    )


def survey(plan: Plan, arguments: Any) -> list[Training]:
    """Make the trainings that the table lacks; every one is in it as soon as it is done. All ranks give the same."""
    config, run = plan.config, plan.run
    fabric = Fabric(accelerator="cpu", **plan.processes.settings())
    fabric.launch()
    table = run.path / "trainings.csv"
    trainings: list[Training] = fabric.broadcast(_known(table, arguments.known) if fabric.is_global_zero else [])
    done = {(training.genotype, training.seed) for training in trainings}
    if trainings and fabric.is_global_zero:
        draw_trainings(trainings, table.with_suffix(".png"))
    coming = jobs(config, arguments, run.path, done)
    at_work = Trainings(config, arguments, arguments.workers, own_gpus(plan.processes, plan.gpus))
    began, before = time.monotonic(), len(trainings)
    try:
        for new in train_all(fabric, at_work, coming, lambda job: collect(job, config)):
            for training in new:
                trainings.append(training)
                if fabric.is_global_zero:
                    write_trainings(table, trainings)
                    draw_trainings(trainings, table.with_suffix(".png"))
                _say(training, len(trainings), (time.monotonic() - began) / (len(trainings) - before))
    finally:
        at_work.stop()
    return trainings


def _known(table: Path, others: Path | None) -> list[Training]:
    """What is trained already."""
    if others and not table.exists():
        write_trainings(table, read_trainings(others))
    return read_trainings(table) if table.exists() else []


def _say(training: Training, number: int, pace: float) -> None:
    log.info(
        "%d: %s, seed %d, %.2f M parameters, %.1f M MACs: top-1 %.2f %% (averaged weights %s), %s a network",
        *(number, training.drawn, training.seed, training.params / 1e6, training.macs / 1e6, training.top1[-1]),
        f"{training.ema_top1[-1]:.2f} %" if training.ema_top1 else "none",
        timedelta(seconds=round(pace)),
    )


def _read_draws(file: Path) -> list[Draw]:
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


def _write_draws(file: Path, draws: Sequence[Draw]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((draw.drawn, notation(draw.genotype)) for draw in draws)
    write_text(file, text.getvalue())
