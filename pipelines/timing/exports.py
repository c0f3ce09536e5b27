"""How fast a checkpoint's network and the files exported from it are on this CPU, side by side and by turns."""

import argparse
import csv
import importlib.metadata
import io
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from configs.schema import Config
from esformer.checkpoint import Checkpoint
from esformer.checkpoint.loading import network_of
from esformer.errors import ESFormerError, out_of_memory
from esformer.export.exported import Exported, exported_kind, open_exported
from esformer.files import write_text
from esformer.model.latency import MOST, Latency, device_name, runs, summarise, time_network
from pipelines.runtime.checkpoint import evaluation_of
from pipelines.runtime.console import show_rows
from pipelines.runtime.evaluating import EvaluationError, check_flags, results, too_many
from pipelines.runtime.logs import is_main

log = logging.getLogger("esformer")

THREADS = (1, 2, 4)
"""Of the CPU; only so many as this process may use."""
ROUNDS = 3
"""Turns of each network, so that what else the machine does disturbs all of them alike."""
SECONDS = 3.0
"""For a batch to be timed over and over."""
MEANT = ("data.img_size", "trainer.threads")
"""The settings that say something here, where there are no images."""


@dataclass(frozen=True)
class Speed:
    """How fast a file is with so many threads.

    Args:
        file: its name.
        runtime: what runs it, with its version.
        precision: of its weights.
        megabytes: of it on the disk; None of a checkpoint, which holds more than one network's weights.
        threads: of the CPU; None where the runtime chooses.
        ms: milliseconds of one image, by the wall clock, the median of the runs.
        error_ms: the standard deviation of a run.
        images_per_second: in batches.
    """

    file: str
    runtime: str
    precision: str
    megabytes: float | None
    threads: int | None
    ms: float
    error_ms: float
    images_per_second: float


def run(config: Config, flags: argparse.Namespace, argv: Sequence[str] | None) -> dict[str, Any]:
    """Time them, write `speed.csv`, print the table. Returns its rows as `speeds`, and on what they were measured.

    Args:
        config: image size and threads.
        flags: of `pipelines.evaluate`, with the checkpoint as `found`.
        argv: its arguments; what they ask for is in the others.

    Raises:
        EvaluationError: something was asked for that only images could answer, or the memory does not hold a batch.
        ExportError: the runtime of an exported file, if that was given, does not open it.
    """
    if foreign := [setting for setting in flags.settings if setting.partition("=")[0] not in MEANT]:
        raise EvaluationError(f"--speed times networks without images: leave out {' '.join(foreign)}")
    size, batch = config.data.img_size, flags.batch_size
    check_flags(flags.found, flags, size)
    networks = [flags.found, *([] if isinstance(flags.found, Exported) else beside(flags.found, size))]
    counts = [config.trainer.threads] if config.trainer.threads else possible_threads()
    folder = flags.out or evaluation_of(flags.checkpoint)
    device = device_name(torch.device("cpu"))
    report = {"checkpoint": str(flags.found.path), "img_size": size, "batch_size": batch, "device": device}
    if not is_main():
        return report
    with results(folder):
        try:
            speeds = list(measure(networks, counts, size, batch, ema=not flags.raw))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise too_many(batch) from None
        write_text(folder / "speed.csv", as_csv(speeds))
    show(speeds, report)
    return report | {"speeds": [asdict(speed) for speed in speeds]}


def beside(found: Checkpoint, img_size: int) -> list[Exported]:
    """The exported files in a checkpoint's folder that hold its architecture for images of this size.

    A warning names those that lie there and cannot be compared, and says why.
    """
    files = []
    for path in sorted(found.path.parent.iterdir()) if found.path.exists() else ():
        if kind := exported_kind(path.name):
            try:
                other = open_exported(path, kind)
                if (other.genotype, other.num_classes) != (found.genotype, found.num_classes):
                    raise EvaluationError(f"{path} holds another network")
                if other.img_size != (img_size, img_size):
                    height, width = other.img_size
                    raise EvaluationError(f"{path} takes images of {height} x {width} pixels, not of {img_size}")
                other.network()
            except ESFormerError as error:
                log.warning("not compared: %s", error)
            else:
                files.append(other)
    return files


def possible_threads() -> list[int]:
    """Those of `THREADS` that this process has CPUs for."""
    return [count for count in THREADS if count <= len(os.sched_getaffinity(0))]


def measure(found: Sequence[Checkpoint], counts: Sequence[int], size: int, batch: int, ema: bool) -> Iterator[Speed]:
    """Time each with each number of threads; those with as many threads by turns.

    Args:
        found: a checkpoint and exported files, or one of them.
        counts: numbers of threads.
        size: of the images in pixels.
        batch: images at a time, where it is not one.
        ema: whether a checkpoint's averaged weights are meant.
    """
    images = torch.rand(batch, found[0].in_chans, size, size)
    for threads in counts:
        log.info("timing %d files, threads: %d", len(found), threads)
        with pytorch_threads(threads), torch.inference_mode():
            chosen = [one for one in found if threads == counts[0] or not chooses_threads(one)]
            networks = [network(one, size, ema) for one in chosen]
            times: list[list[float]] = [[] for _ in networks]
            for _ in range(ROUNDS):
                for taken, program in zip(times, networks, strict=True):
                    taken += itertools.islice(runs(program, images[:1], own_time=False), MOST // ROUNDS)
            for one, taken, program in zip(chosen, times, networks, strict=True):
                many = time_network(program, images, threads, seconds=SECONDS, elsewhere=True)
                yield speed_of(one, None if chooses_threads(one) else threads, summarise(taken), 1e3 * batch / many.ms)


@contextmanager
def pytorch_threads(count: int) -> Iterator[None]:
    """PyTorch computes on so many threads, and so do runtimes that open a file meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def network(found: Checkpoint, size: int, ema: bool) -> nn.Module:
    """The network that a checkpoint holds, or what runs an exported file."""
    return found.network() if isinstance(found, Exported) else network_of(found, ema=ema, img_size=size).eval()


def chooses_threads(found: Checkpoint) -> bool:
    """Whether its runtime chooses how many threads it takes."""
    return isinstance(found, Exported) and found.kind.own_threads


def speed_of(found: Checkpoint, threads: int | None, latency: Latency, images_per_second: float) -> Speed:
    """What was measured, with what it was measured of."""
    package, precision, megabytes = "torch", "float32", None
    if isinstance(found, Exported):
        package = found.kind.runtime[0]
        precision = "int8" if "quantized" in found.about else precision
        megabytes = sum(path.stat().st_size for path in found.files) / 1e6
    runtime = f"{package} {importlib.metadata.version(package)}"
    return Speed(
        found.path.name, runtime, precision, megabytes, threads, latency.ms, latency.error_ms, images_per_second
    )


def as_csv(speeds: Sequence[Speed]) -> str:
    """A row for each."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(asdict(speeds[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, speeds))
    return table.getvalue()


def show(speeds: Sequence[Speed], report: dict[str, Any]) -> None:
    """Print them, the fastest with one thread first."""
    first = {speed.file: speed.ms for speed in reversed(speeds)}
    ordered = sorted(speeds, key=lambda speed: (first[speed.file], speed.file, speed.threads or 0))
    title = "images of {img_size} pixels, {batch_size} at a time in the last column; {device}".format(**report)
    head = ("file", "runs in", "weights", "MB", "threads", "ms for one image", "images a second")
    show_rows([head, *map(row, ordered)], title=title)


def row(speed: Speed) -> tuple[str, ...]:
    """What is printed of it."""
    return (
        speed.file,
        speed.runtime,
        speed.precision,
        "-" if speed.megabytes is None else f"{speed.megabytes:.1f}",
        str(speed.threads or "its own"),
        f"{speed.ms:.2f} ± {speed.error_ms:.2f}",
        f"{speed.images_per_second:,.1f}",
    )
