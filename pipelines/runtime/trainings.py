"""Trainings: runs of pipelines.train that another pipeline makes, each a process with a folder of its own."""

import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed
from lightning.fabric import Fabric

from callbacks.history import read_steps
from configs.schema import Config
from esformer.children import end_with_parent
from esformer.errors import STOPPED, ESFormerError
from esformer.genotype import Genotype
from pipelines.runtime.processes import Processes
from pipelines.runtime.signals import LATE

Value = TypeVar("Value")
POLL = 0.5
"""Seconds between two looks at the trainings, after which all ranks tell each other how far they are."""
PATIENCE = 60.0
"""Seconds that trainings have to save what they have, when whoever made them is stopped."""
OF_RANKS = re.compile(
    r"(SLURM|PMI|PMIX|TORCHELASTIC)_.*|MASTER_(ADDR|PORT)|((LOCAL|NODE|GROUP|ROLE)_)?RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE"
    r"|ROLE_NAME"
)
"""Environment variables by which a process takes itself for a rank, or its job for its own to requeue."""


class TrainingsError(ESFormerError):
    """A training that failed; says which, and what it said last."""


@dataclass(frozen=True)
class Job:
    """A training to be made.

    Args:
        genotype: what is trained.
        origin: where it comes from, for people.
        seed: of the training.
        folder: of its run; what it prints goes into a file beside it.
        settings: its own, over those of the command line.
        module: what is run instead of pipelines.train.
    """

    genotype: Genotype
    origin: str
    seed: int
    folder: Path
    settings: tuple[str, ...] = ()
    module: str = "pipelines.train"

    @property
    def output(self) -> Path:
        """What it prints."""
        return self.folder.with_suffix(".log")

    @property
    def last_line(self) -> str:
        """What it said last."""
        lines = self.output.read_text(errors="replace").split("\n") if self.output.exists() else []
        return next((line for line in reversed(lines) if line.strip()), f"it said nothing in {self.output}")


@dataclass(frozen=True)
class Reached:
    """What a training reached.

    Args:
        top1: accuracy on the validation images after each epoch, in percent.
        ema_top1: the same of the averaged weights; empty if there were none.
        seconds: spent in training steps, without evaluation.
    """

    top1: tuple[float, ...]
    ema_top1: tuple[float, ...]
    seconds: float

    @property
    def better(self) -> tuple[float, ...]:
        """Of raw and averaged weights those that are better in the end."""
        return max(self.top1, self.ema_top1, key=lambda accuracies: accuracies[-1:])

    @property
    def score(self) -> float:
        """What these reach in the last epoch."""
        return self.better[-1]

    @classmethod
    def read(cls, folder: Path) -> "Reached":
        """That of a run that is over."""
        with (folder / "metrics.csv").open(newline="") as file:
            epochs = list(csv.DictReader(file))
        top1, ema_top1 = (
            tuple(round(100 * float(epoch[column]), 2) for epoch in epochs if epoch.get(column))
            for column in ("val/top1", "val/ema_top1")
        )
        seconds = sum(row.get("seconds", 0.0) for row in read_steps(folder / "steps.csv"))
        return cls(top1, ema_top1, round(seconds, 1))


class Trainings:
    """The trainings at work: processes of pipelines.train, which end with this one.

    Args:
        config: the configuration of whoever makes them.
        arguments: its command line; the settings are handed on.
        workers: how many at a time.
        gpus: to be dealt out, as CUDA_VISIBLE_DEVICES names them; none if trainings run on CPUs.
    """

    def __init__(self, config: Config, arguments: Any, workers: int, gpus: list[str]) -> None:
        self.config, self.arguments, self.workers, self.gpus = config, arguments, workers, gpus
        self.running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}

    def start(self, job: Job) -> None:
        """Train a genotype on the first device that is free."""
        slot = next(slot for slot in range(self.workers) if slot not in self.running)
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        genotype = job.folder.with_suffix(".yaml")
        job.genotype.save(genotype, comment=job.origin)
        command = [sys.executable, "-m", job.module, "--size", self.config.size]
        command += ["--quick"] if self.arguments.quick else []
        command += [*self.arguments.settings, f"seed={job.seed}", f"genotype={genotype}", f"run.dir={job.folder}"]
        command += ["trainer.devices=1", "trainer.num_nodes=1", "wandb.mode=disabled", *job.settings]
        environment = {name: value for name, value in os.environ.items() if not OF_RANKS.fullmatch(name)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        with job.output.open("ab") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, preexec_fn=end_with_parent
            )
        self.running[slot] = (job, process)

    def finished(self) -> list[Job]:
        """Those that have ended since the last call.

        Raises:
            TrainingsError: one of them failed; says what it said last.
            SystemExit: 75, one of them was asked to stop.
        """
        ended = [slot for slot, (_, process) in self.running.items() if process.poll() is not None]
        jobs = []
        for slot in ended:
            job, process = self.running.pop(slot)
            if process.returncode == STOPPED:
                time.sleep(LATE)  # a signal to all processes of a job: our own comes within moments
                raise SystemExit(STOPPED)
            if process.returncode:
                raise TrainingsError(
                    f"the training in {job.folder} failed (exit code {process.returncode}): {job.last_line}"
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


def visible_gpus(config: Config) -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them; none if trainings run on CPUs."""
    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def own_gpus(found: Processes, gpus: Sequence[str]) -> list[str]:
    """Those of this machine's GPUs on which this process makes trainings: its own, if each has one."""
    if found.starter is not None and found.environment is not None and found.world_size > 1:
        return [*gpus[found.environment.local_rank() :][:1]]
    return [*gpus]


def train_all(
    fabric: Fabric, trainings: Trainings, jobs: Iterable[Job], collect: Callable[[Job], Value]
) -> Iterator[list[Value]]:
    """Make trainings on all ranks; rank 0 deals them out to whoever has nothing to do.

    Args:
        fabric: the ranks, launched.
        trainings: those of this rank; the caller stops them in the end.
        jobs: what is to be trained; taken as it is needed, on rank 0 alone.
        collect: what is to be known of a training that has ended; called where it was made.

    Yields:
        On every rank, every moment, the same: what was collected since the last time.
    """
    coming = iter(jobs)
    while True:
        states = _exchange(fabric, (trainings.workers - len(trainings.running), len(trainings.running)))
        dealt = fabric.broadcast([[*islice(coming, free)] for free, _ in states] if fabric.is_global_zero else [])
        for job in dealt[fabric.global_rank]:
            trainings.start(job)
        if not any(dealt) and not any(running for _, running in states):
            return
        time.sleep(POLL)
        collected = _exchange(fabric, [collect(job) for job in trainings.finished()])
        yield [*chain.from_iterable(collected)]


def _exchange(fabric: Fabric, news: Value) -> list[Value]:
    """What all ranks have to tell; nobody waits for long, so nobody takes a slow training for a rank that is lost."""
    if fabric.world_size == 1:
        return [news]
    told = [news] * fabric.world_size
    torch.distributed.all_gather_object(told, news)
    return told
