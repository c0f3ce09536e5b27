"""Survey: train many networks with one recipe, and keep what each reaches in a table.

Draws genotypes that answer what is better at equal cost (or takes those that --genotypes names), trains each on the
data and with the recipe of the configuration, and adds a line to trainings.csv as soon as one is done. Killed, the same
command goes on, in the middle of a training too; with more --networks or --workers it adds to the same folder.
The table is read by `python -m pipelines.correlate --benchmark esformer --table DIR/trainings.csv`.
"""

import csv
import io
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from esformer.errors import ESFormerError
from pipelines import cli
from pipelines.config import Config, ConfigError

if TYPE_CHECKING:
    from esformer.benchmarks.draws import Draw
    from esformer.benchmarks.esformers import Training
    from pipelines.run import RunFolder

log = logging.getLogger("esformer")

REPEATED = 8
"""Of the drawn genotypes every eighth, from the first on, is trained with each seed; the others with the first."""
PATIENCE = 60.0
"""Seconds that trainings have to save what they have, when the survey is stopped."""

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


@dataclass(frozen=True)
class Job:
    """A training to be made, as a run of pipelines.train in a folder of its own."""

    draw: "Draw"
    seed: int
    folder: Path


def jobs(config: Config, arguments: Any, folder: Path, done: set[tuple[str, int]]) -> Iterator[Job]:
    """The trainings that the table lacks, in order; each genotype is drawn when it is asked for."""
    from esformer.genotype import notation

    for index, draw in enumerate(named(config, arguments) if arguments.genotypes else drawn(config, arguments, folder)):
        repeated = arguments.genotypes or index % REPEATED == 0
        for seed in range(config.seed, config.seed + (arguments.seeds if repeated else 1)):
            if (notation(draw.genotype), seed) not in done:
                yield Job(draw, seed, folder / "networks" / f"{index:04}-{draw.genotype.digest}-{seed}")


def named(config: Config, arguments: Any) -> "Iterator[Draw]":
    """The genotypes that a person names."""
    from dataclasses import replace

    from esformer.benchmarks.draws import Draw
    from pipelines.train import given_genotype

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


class Trainings:
    """The trainings at work: processes of pipelines.train, which end with this one.

    Args:
        config: the survey's configuration.
        arguments: its command line; the settings are handed on.
        workers: how many at a time.
    """

    def __init__(self, config: Config, arguments: Any, workers: int) -> None:
        self.config, self.arguments, self.workers = config, arguments, workers
        self.running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
        self.devices = _devices(config)

    def start(self, job: Job) -> None:
        """Train a genotype on the first device that is free."""
        from esformer.children import end_with_parent

        slot = next(slot for slot in range(self.workers) if slot not in self.running)
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        genotype = job.folder.with_suffix(".yaml")
        job.draw.genotype.save(genotype, comment=f"drawn: {job.draw.drawn}")
        command = [sys.executable, "-m", "pipelines.train", "--size", self.config.size]
        command += ["--quick"] if self.arguments.quick else []
        command += [*self.arguments.settings, f"seed={job.seed}", f"genotype={genotype}", f"run.dir={job.folder}"]
        command += ["trainer.devices=1", "trainer.num_nodes=1", "wandb.mode=disabled"]
        environment = dict(os.environ)
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        with _output(job).open("ab") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, preexec_fn=end_with_parent
            )
        self.running[slot] = (job, process)

    def finished(self) -> list[Job]:
        """Those that have ended since the last call.

        Raises:
            SurveyError: one of them failed; says what it said last.
        """
        ended = [slot for slot, (_, process) in self.running.items() if process.poll() is not None]
        jobs = []
        for slot in ended:
            job, process = self.running.pop(slot)
            if process.returncode:
                raise SurveyError(
                    f"the training in {job.folder} failed (exit code {process.returncode}): {_last_line(_output(job))}"
                )
            jobs.append(job)
        return jobs

    def stop(self) -> None:
        """Have those at work save what they have, and end."""
        for _, process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for _, process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()


def collect(job: Job, config: Config) -> "Training":
    """The line of a training that has ended; its checkpoints go."""
    from callbacks.pictures import read_steps
    from esformer.benchmarks.esformers import Training
    from esformer.genotype import notation
    from esformer.model.cost import cost

    assert config.data.num_classes is not None
    price = cost(job.draw.genotype, config.data.img_size, config.data.num_classes)
    with (job.folder / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    top1, ema_top1 = (
        tuple(round(100 * float(epoch[column]), 2) for epoch in epochs if epoch.get(column))
        for column in ("val/top1", "val/ema_top1")
    )
    seconds = sum(row.get("seconds", 0.0) for row in read_steps(job.folder / "steps.csv"))
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    return Training(
        genotype=notation(job.draw.genotype),
        drawn=job.draw.drawn,
        seed=job.seed,
        params=price.params,
        macs=price.macs,
        top1=top1,
        ema_top1=ema_top1,
        seconds=round(seconds, 1),
        versions=_versions(),
    )


def survey(config: Config, arguments: Any, run: "RunFolder") -> "list[Training]":
    """Make the trainings that the table lacks; every one is in it as soon as it is done."""
    from esformer.benchmarks.esformers import read_trainings, write_trainings

    table = run.path / "trainings.csv"
    if arguments.known and not table.exists():
        write_trainings(table, read_trainings(arguments.known))
    trainings = read_trainings(table) if table.exists() else []
    done = {(training.genotype, training.seed) for training in trainings}
    coming = jobs(config, arguments, run.path, done)
    at_work = Trainings(config, arguments, arguments.workers)
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


def _devices(config: Config) -> list[str]:
    """The GPUs to deal out, as CUDA_VISIBLE_DEVICES names them; none if trainings run on CPUs."""
    import torch

    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _versions() -> str:
    from importlib.metadata import version

    from esformer.version import code_version

    libraries = (f"{name} {version(name)}" for name in ("torch", "timm", "lightning"))
    return ", ".join([f"esformer {code_version()}", *libraries])


def _output(job: Job) -> Path:
    """What a training prints."""
    return job.folder.with_suffix(".log")


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"it said nothing in {file}")


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
    from esformer.atomic import write_text
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
    from pipelines.launch import check
    from pipelines.processes import processes
    from pipelines.run import RunFolder, show

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
