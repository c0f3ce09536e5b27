"""Scores of many architectures: worker processes that compute them, and the file in which each is kept at once."""

import csv
import hashlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from esformer.children import StoppedProcesses, end_with_parent
from esformer.errors import ESFormerError
from esformer.files import unwritable, whole_lines
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


Task = tuple[str, list[str]]
"""An architecture and the proxies that it lacks; its network is built once for all of them."""


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
        tasks = ((a, [p for p in proxies if (a, p) not in self.known]) for a in architectures)
        return [(architecture, lacking) for architecture, lacking in tasks if lacking]

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


def score_all(job: Job, tasks: Sequence[Task], workers: int) -> Generator[list[Score], None, None]:
    """Compute what is missing in worker processes; the scores of an architecture come as soon as they are there.

    Close this generator (`contextlib.closing`) where you may leave it early: that ends the workers.

    Raises:
        ScoringError: a worker died.
    """
    coming = iter(tasks)
    running: set[Future[list[Score]]] = set()
    with _pool(job, min(workers, len(tasks))) as pool:
        try:
            # few in flight: a table of hundreds of thousands takes no memory, and results come as they are made
            while running := running | pool.hand_out(islice(coming, 4 * workers - len(running))):
                done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                pool.look_after()
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise ScoringError(
                f"a worker process {pool.cause()}; what is scored is kept:"
                " start the same command again, with fewer --workers if it happens again"
            ) from None


class Pool(ProcessPoolExecutor):
    """Worker processes that end with this one, however it ends, and whose fate is known.

    Args:
        job: what they work on.
        workers: how many.
    """

    def __init__(self, job: Job, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        super().__init__(workers, mp_context=context, initializer=_start_worker, initargs=(job,))
        self._before = set(multiprocessing.active_children())
        self._workers: set[Any] = set()
        self._stopped = StoppedProcesses()
        self._killed: int | None = None

    def hand_out(self, tasks: Iterable[Task]) -> set[Future[list[Score]]]:
        """Hand tasks on, which may start workers: they inherit that Ctrl-C is not for them but for the parent."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return {self.submit(_score, *task) for task in tasks}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._workers |= set(multiprocessing.active_children()) - self._before

    def look_after(self) -> None:
        """End a worker that stays stopped, which would never end its work."""
        workers = {worker.pid: worker for worker in self._workers if worker.is_alive()}
        for pid in self._stopped.among(workers):
            self._killed = pid
            workers[pid].kill()

    def cause(self) -> str:
        """What the first of them died of; the pool has ended the others with SIGTERM."""
        for worker in self._workers:
            worker.join(1)
        if self._killed is not None:
            return f"was stopped (process {self._killed}, SIGSTOP) and had to be ended"
        codes = [worker.exitcode for worker in self._workers if worker.exitcode not in (None, 0, -signal.SIGTERM)]
        if not codes:
            return "was ended by SIGTERM"
        if codes[0] == -signal.SIGKILL:
            return "was killed, most likely for want of memory"
        return f"died (exit code {codes[0]}); see what it said"

    def end(self) -> None:
        """End the workers, busy or not."""
        self.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()  # SIGTERM would wait in one that is stopped
            worker.join()


@contextmanager
def _pool(job: Job, workers: int) -> Iterator[Pool]:
    pool = Pool(job, workers)
    try:
        yield pool
    finally:
        pool.end()


_job: Job
"""In a worker: what it works on."""


def _start_worker(job: Job) -> None:
    global _job
    _job = job
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries among themselves
    end_with_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _score(architecture: str, proxies: list[str]) -> list[Score]:
    """All the proxies that an architecture lacks; its network is built once, when the first needs it."""
    import torch

    from esformer import benchmarks
    from esformer.genotype import Genotype
    from esformer.proxies import Subject, get, score

    benchmark = benchmarks.get(_job.benchmark)
    img_size = benchmark.datasets[_job.dataset].img_size
    known: Subject | None = None
    torch.manual_seed(_job.seed)  # of whatever a proxy leaves as it was built: the order of the tasks must not matter
    scores = []
    for proxy in proxies:
        needs, value, error = get(proxy).needs, None, ""
        began = time.perf_counter()
        try:
            if needs == "genotype":
                subject: Subject = benchmark.topology(architecture)
            else:
                subject = known = known or benchmark.subject(architecture, _job.dataset)
            images = _images() if needs == "batch" else {}
            began = time.perf_counter()
            # genotypes share their draws, as in a search
            identity = None if isinstance(subject, Genotype) else architecture
            value = score(proxy, subject, seed=_job.seed, img_size=img_size, identity=identity, **images)
        except ESFormerError as failure:
            error = " ".join(str(failure).split())
        scores.append(Score(architecture, proxy, value, round(time.perf_counter() - began, 6), error))
    return scores


def _images() -> dict[str, Any]:
    import torch

    assert _job.batch is not None
    return {"images": torch.from_numpy(_job.batch.images), "labels": torch.from_numpy(_job.batch.labels)}


def read_batch(folder: Path, size: int, num_classes: int, img_size: int, seed: int) -> Batch:
    """Draw a batch of images from a folder of class folders, or from its `train`, if it has one; noise for `noise`.

    Raises:
        ESFormerError: there are too few images or too many classes, or an image cannot be read.
    """
    from PIL import Image

    from esformer.data.images import read_image
    from esformer.data.sources import Folder
    from esformer.proxies.noise import noise_batch

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
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

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
