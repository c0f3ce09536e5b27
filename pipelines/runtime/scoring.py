"""Scores of many architectures: how one is computed, and the file in which each is kept at once."""

import csv
import hashlib
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from esformer import benchmarks
from esformer.data.images import read_image
from esformer.data.sources import Folder
from esformer.errors import ESFormerError
from esformer.files import unwritable, whole_lines
from esformer.proxies import get
from esformer.proxies.noise import noise_batch
from esformer.throttle import Throttle

log = logging.getLogger("esformer")

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training images, channel by channel; the networks of the benchmarks saw images brought to these."""
NOISE = Path("noise")
"""In place of a folder of images."""
LONGEST = 1 << 17
"""Bytes, more than any line of scores has."""


class ScoringError(ESFormerError):
    """Scores that cannot be computed or kept; says what is in the way."""


@dataclass(frozen=True, slots=True)
class Score:
    """One line of `scores.csv`."""

    architecture: str
    proxy: str
    score: float | None
    """None if the proxy cannot score it."""
    seconds: float
    error: str = ""
    """Why not."""


@dataclass(frozen=True)
class Batch:
    """Images that all architectures are shown."""

    images: np.ndarray
    """B, 3, H, W, normalised."""
    labels: np.ndarray
    digest: str
    """Of the names of all images among which these were drawn."""


@dataclass(frozen=True)
class Job:
    """What all architectures have in common."""

    benchmark: str
    dataset: str
    seed: int = 0
    batch: Batch | None = None


@dataclass(frozen=True)
class Task:
    """An architecture and the proxies that it lacks."""

    architecture: str
    proxies: tuple[str, ...]

    def __str__(self) -> str:
        return f"architecture {self.architecture}"


class ScoreFile:
    """The scores that are known; on disk as soon as they are appended. A last line that a kill tore off is cut away.

    Args:
        path: the file.

    Raises:
        ScoringError: it holds something else.
    """

    HEADER = [field.name for field in fields(Score)]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[tuple[str, str], Score] = {}
        end = 0
        try:
            if path.exists():
                for number, line, after in whole_lines(path, LONGEST):
                    self._read(number, line)
                    end = after
            with path.open("ab") as file:
                file.truncate(end)
            self._file = path.open("a", encoding="utf-8", newline="", buffering=1)  # a line at a time
        except OSError as error:
            raise ScoringError(unwritable(path, error)) from None
        self._writer = csv.writer(self._file, lineterminator="\n")
        if not end:
            self._writer.writerow(self.HEADER)

    def append(self, score: Score) -> None:
        self.known[score.architecture, score.proxy] = score
        self._writer.writerow(astuple(score))

    def missing(self, architectures: Iterable[str], proxies: Sequence[str]) -> list[Task]:
        """What is still to be computed."""
        tasks = (Task(a, tuple(p for p in proxies if (a, p) not in self.known)) for a in architectures)
        return [task for task in tasks if task.proxies]

    def close(self) -> None:
        self._file.close()

    def _read(self, number: int, line: bytes) -> None:
        try:
            (row,) = csv.reader([line.decode()])
            if number == 1 and row != self.HEADER:
                raise ValueError
            if number > 1:
                architecture, proxy, score, seconds, error = row
                values = [float(value) if value else None for value in (score, seconds)]
                if not all(value is None or math.isfinite(value) for value in values) or values[1] is None:
                    raise ValueError
                self.known[architecture, proxy] = Score(architecture, proxy, values[0], values[1], error)
        except (ValueError, csv.Error):
            raise ScoringError(f"{self.path}: line {number} is not a line of scores; mend or remove it") from None


@dataclass(frozen=True)
class Scorer:
    """Scores an architecture by all the proxies that it lacks; its network is built once, when the first needs it.

    Args:
        job: what all architectures have in common.
    """

    job: Job

    def __call__(self, task: Task) -> list[Score]:
        warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries among themselves
        benchmark, job, built, scores = benchmarks.get(self.job.benchmark), self.job, None, list[Score]()
        torch.set_num_threads(1)  # neither the number of workers nor the order of the tasks may change a digit
        for name in task.proxies:
            proxy, value, error = get(name), None, ""
            began = time.perf_counter()
            try:
                shown = None if proxy.needs == "genotype" else built
                shown = shown or benchmark.shown(proxy, task.architecture, job.dataset, job.seed)
                built = built if proxy.needs == "genotype" else shown
                images = self._images() if proxy.needs == "batch" else {}
                began = time.perf_counter()
                value = benchmark.score(proxy, task.architecture, job.dataset, job.seed, shown, **images)
            except ESFormerError as failure:
                error = " ".join(str(failure).split())
            scores.append(Score(task.architecture, name, value, round(time.perf_counter() - began, 6), error))
        return scores

    def _images(self) -> dict[str, Any]:
        assert self.job.batch is not None
        return {"images": torch.from_numpy(self.job.batch.images), "labels": torch.from_numpy(self.job.batch.labels)}


def read_batch(folder: Path, size: int, num_classes: int, img_size: int, seed: int) -> Batch:
    """Draw a batch of images from a folder of class folders, or from its `train`, if it has one; noise for `noise`.

    Raises:
        ESFormerError: there are too few images or too many classes, or an image cannot be read.
    """
    if folder == NOISE:
        images, labels = noise_batch(size, img_size, seed)
        return Batch(images, labels % num_classes, "noise")
    folder = folder / "train" if (folder / "train").is_dir() else folder
    if not folder.is_dir():
        raise ScoringError(f"--images is {folder}, which is not a folder; it may also be {NOISE}")
    try:
        found = Folder(folder)
    except (FileNotFoundError, ValueError) as error:
        raise ScoringError(f"{folder} must hold one folder of images a class: {error}") from None
    if len(found.classes) > num_classes:
        raise ScoringError(f"{folder} has {len(found.classes)} classes, but the dataset has only {num_classes}")
    if len(found.samples) < size:
        raise ScoringError(f"{folder} has {len(found.samples)} images, but --batch-size is {size}")
    names = b"\n".join(os.fsencode(Path(path).relative_to(folder)) for path, _ in found.samples)
    drawn = [found.samples[i] for i in np.random.default_rng(seed).permutation(len(found.samples))[:size]]
    side = (img_size, img_size)
    pixels = np.stack([np.asarray(read_image(path).resize(side, Image.Resampling.BICUBIC)) for path, _ in drawn])
    images = ((pixels / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)  # B, H, W, 3 -> B, 3, H, W
    labels = np.array([label for _, label in drawn])
    return Batch(np.ascontiguousarray(images), labels, hashlib.sha256(names).hexdigest())


class Progress:
    """How far the scoring is: a bar on a terminal, a line now and then otherwise.

    Args:
        total: architectures in all.
        done: those whose scores were known.
        every: seconds between two lines.
    """

    def __init__(self, total: int, done: int, every: float = 15) -> None:
        self.total, self.before, self.done = total, done, done
        self._began, self._line = time.monotonic(), Throttle(every, at_once=False)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Bar(TextColumn("architectures"), *columns, disable=not sys.stdout.isatty())
        self._task = self._bar.add_task("", total=total, completed=done)

    def advance(self) -> None:
        """One more is scored."""
        self.done += 1
        self._bar.advance(self._task)
        if self._bar.disable and self._line.due():
            pace = (self.done - self.before) / (time.monotonic() - self._began)
            left = timedelta(seconds=round((self.total - self.done) / pace))
            log.info("%s of %s architectures, %.3g a second, %s left", self.done, self.total, pace, left)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
