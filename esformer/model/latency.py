"""How long a network takes for one image or a batch, measured: the time of a forward pass on a device.

Source: none. A latency is a property of the device and its software as much as of the genotype, and what else the
device does disturbs it. So it comes with an error, and a search has to keep it, for measured again it is another.
"""

import math
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esformer.errors import ESFormerError, out_of_memory
from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer

WARM_UP = 3
"""Runs before those that count: they allocate memory and choose kernels."""
FEWEST, MOST = 10, 30
"""Runs that count."""
CLEAR = 4
"""A latency that is so many of its errors away from a limit is measured well enough."""


def device_name(device: torch.device) -> str:
    """Such as NVIDIA H100 or AMD EPYC.

    Args:
        device: of this machine.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True, slots=True)
class Latency:
    """A measured latency.

    Args:
        ms: milliseconds of one image (or batch), the median of the runs.
        error_ms: the standard deviation of one run (1.4826 times the median absolute deviation). It is not divided by
            the root of the number of runs, as it would be for independent ones: clock rates and other load change more
            slowly than a measurement lasts, and two measurements of one genotype differ by about this much.
        runs: how many there were.
    """

    ms: float
    error_ms: float
    runs: int

    def __str__(self) -> str:
        return f"{self.ms:.1f} ± {self.error_ms:.1f} ms"


def measure_latency(
    genotype: Genotype,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    device: str | torch.device = "cpu",
    threads: int = 1,
    limit_ms: float | None = None,
) -> Latency:
    """Time `ESFormer(genotype, num_classes, img_size=img_size)` on one image, as it is used: float32, eager, unfused.

    `time_network` says how. PyTorch's global state (threads, random numbers) is left as it was.

    Args:
        genotype: the architecture; the weights are as initialised, since their values do not matter for the time.
        img_size: height and width of the image in pixels (one number: square).
        num_classes: outputs of the classifier.
        device: where it runs.
        threads: of the CPU.
        limit_ms: stop as soon as the latency is clearly above or below this, after 10 to 30 runs; None: after 30.

    Raises:
        ESFormerError: there is no such device, it has no memory left, or fewer than one thread.
    """
    device = torch.device(device)
    if device.type != "cpu":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None or accelerator.type != device.type:
            raise ESFormerError(f"latency cannot be measured on {device}: this machine has no such device")
    if threads < 1:
        raise ESFormerError(f"latency cannot be measured on {threads} threads; it needs at least 1")

    try:
        with torch.random.fork_rng(devices=[]):
            network = ESFormer(genotype, num_classes, img_size=img_size).eval().to(device, torch.float32)
            image = torch.rand(1, 3, *network.img_size).to(device, torch.float32)
        return time_network(network, image, threads, limit_ms)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ESFormerError(
            f"{device} has no memory left for one image of {img_size} pixels: who else uses it?"
        ) from None


def measure_parts(genotype: Genotype, img_size: int = 224, num_classes: int = 1000) -> list[float]:
    """Milliseconds of each part of a network, as `esformer.model.parts` lists them: one image, one thread of the CPU.

    Each is the median of 10 runs in float32, eager and unfused, on the thread's own clock. PyTorch's global state
    (threads, random numbers) is left as it was.

    Args:
        genotype: the architecture; the weights are as initialised.
        img_size: height and width of the image in pixels.
        num_classes: outputs of the classifier.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        network: Any = ESFormer(genotype, num_classes, img_size=img_size).eval().float()
        image = torch.rand(1, 3, img_size, img_size, dtype=torch.float32)
    modules: list[nn.Module] = [network.stem]
    for number, stage in enumerate(network.stages):
        modules += [*([stage.downsample] if number else []), *stage.blocks]
    times: list[int] = []
    for module in modules:
        module.register_forward_hook(lambda *_: times.append(time.thread_time_ns()))
    rounds, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            for _ in range(WARM_UP + FEWEST):
                times[:] = [time.thread_time_ns()]
                network(image)
                rounds.append([*pairwise([*times, time.thread_time_ns()])])
    finally:
        torch.set_num_threads(threads)
    return [
        statistics.median((end - start) / 1e6 for start, end in part) for part in zip(*rounds[WARM_UP:], strict=True)
    ]


def time_network(
    network: nn.Module,
    images: Tensor,
    threads: int = 1,
    limit_ms: float | None = None,
    seconds: float = math.inf,
    elsewhere: bool = False,
) -> Latency:
    """Time a network as it is, in inference mode, on images on its device.

    On one thread of a CPU the time is that thread's own, which is the latency on a core that nothing else runs on; with
    more threads, and on an accelerator (synchronised after every run), it is the wall clock's. Other load still slows
    caches, memory and clock rates. On a fast accelerator one image takes as long as launching its kernels, whatever
    their widths. PyTorch's number of threads is left as it was.

    Args:
        network: in evaluation mode.
        images: B, C, H, W; the latency is that of all of them together.
        threads: of the CPU.
        limit_ms: as in `measure_latency`.
        seconds: begin no more runs after so long, but one at least; those that warm up do not count.
        elsewhere: it computes in threads of its own, so that only the wall clock sees them.
    """
    own_time = images.device.type == "cpu" and threads == 1 and not elsewhere
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return summarise(_within(runs(network, images, own_time), seconds), limit_ms)
    finally:
        torch.set_num_threads(before)


def summarise(times_ms: Iterable[float], limit_ms: float | None = None) -> Latency:
    """The latency that is in repeated runs' times, of which it takes no more than it needs."""
    taken: list[float] = []
    for ms in times_ms:
        taken.append(ms)
        if len(taken) == MOST or (limit_ms is not None and len(taken) >= FEWEST and _is_clear(taken, limit_ms)):
            break
    return _latency(taken)


def _is_clear(times_ms: list[float], limit_ms: float) -> bool:
    latency = _latency(times_ms)
    return abs(latency.ms - limit_ms) > CLEAR * latency.error_ms


def _latency(times_ms: list[float]) -> Latency:
    median = statistics.median(times_ms)
    deviation = statistics.median(abs(ms - median) for ms in times_ms)
    return Latency(median, 1.4826 * deviation, len(times_ms))


def runs(network: nn.Module, image: Tensor, own_time: bool) -> Iterator[float]:
    """Run the network for ever and give the milliseconds of each run, on the thread's own clock or on the wall."""
    clock = time.thread_time_ns if own_time else time.perf_counter_ns
    for _ in range(WARM_UP):
        network(image)
    while True:
        _wait(image.device)
        start = clock()
        network(image)
        _wait(image.device)
        yield (clock() - start) / 1e6


def _within(times_ms: Iterable[float], seconds: float) -> Iterator[float]:
    """The times of runs until they have taken so many seconds together."""
    spent = 0.0
    for ms in times_ms:
        yield ms
        spent += ms
        if spent >= 1e3 * seconds:
            return


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
