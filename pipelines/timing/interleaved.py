"""Interleaved timing: our training and timm's in one process, by turns, for `pipelines.timing.throughput`."""

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.ema import EMA

OURS, TIMM = "ours", "timm"
WARM = 2
"""Steps before the first that counts."""


class StopMeasurement(Exception):
    """A training has been measured."""


@dataclass
class Meter:
    """Seconds of turns, those of them that this process had a processor, and how busy the GPU was, side by side.

    Args:
        device: on which both train.
    """

    device: torch.device
    seconds: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], TIMM: []})
    worked: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], TIMM: []})
    busy: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], TIMM: []})
    memory: dict[str, float] = field(default_factory=dict)
    _side: str | None = None
    _began: tuple[float, float] = (0.0, 0.0)

    def start(self, side: str) -> None:
        self._wait()
        self._side, self._began = side, (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        assert self._side is not None
        self._wait()
        self.seconds[self._side].append(time.perf_counter() - self._began[0])
        self.worked[self._side].append(time.process_time() - self._began[1])
        self._side = None

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def peak(self, side: str) -> Iterator[None]:
        """Note the most memory of the GPU that a side takes."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        if self.device.type == "cuda":
            self.memory[side] = max(self.memory.get(side, 0.0), torch.cuda.max_memory_allocated(self.device))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Ask the GPU ten times a second how busy it is, if it says."""
        over = threading.Event()

        def watch() -> None:
            with suppress(Exception):  # it says so only with NVIDIA's library for Python
                while not over.wait(0.1):
                    if (side := self._side) is not None:
                        self.busy[side].append(torch.cuda.utilization(self.device))

        watcher = threading.Thread(target=watch, daemon=True)
        if self.device.type == "cuda":
            watcher.start()
        try:
            yield
        finally:
            over.set()
            if watcher.is_alive():
                watcher.join()


@contextmanager
def timm_backend_flags(device: torch.device) -> Iterator[None]:
    """PyTorch's switches as train.py sets them; afterwards as they were."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.benchmark
    if device.type == "cuda":
        matmul.allow_tf32, cudnn.benchmark = True, True
    try:
        yield
    finally:
        if device.type == "cuda":
            matmul.allow_tf32, cudnn.benchmark = before


class Clock(Callback):
    """Measures some steps of our training, then ends it.

    Args:
        meter: is told when they begin and end.
        skip: steps before.
        steps: those that count.
    """

    def __init__(self, meter: Meter, skip: int, steps: int) -> None:
        self.meter, self.skip, self.steps, self._seen = meter, skip, steps, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._seen:  # a batch that is only accumulated
            return
        self._seen = trainer.global_step
        if self._seen == self.skip:
            self.meter.start(OURS)
        elif self._seen == self.skip + self.steps:
            self.meter.stop()
            raise StopMeasurement


class Steps(Callback):
    """Measures the step alone, ours and timm's by turns, before the first batch of the loop; then ends the training.

    Args:
        meter: is told when a turn begins and ends.
        theirs: does a step of timm's each time.
        turn: steps of a turn.
        turns: of each side.
    """

    def __init__(self, meter: Meter, theirs: Iterator[float], turn: int, turns: int) -> None:
        self.meter, self.theirs, self.turn, self.turns = meter, theirs, turn, turns

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ours = own_steps(trainer, pl_module)
        for number in range(WARM + self.turns):
            if number == WARM:
                for times in (*self.meter.seconds.values(), *self.meter.worked.values()):
                    times.clear()
            for side in (OURS, TIMM) if number % 2 else (TIMM, OURS):
                self.meter.start(side)
                with timm_backend_flags(self.meter.device) if side == TIMM else nullcontext():
                    for _ in range(self.turn):
                        next(ours if side == OURS else self.theirs)
                self.meter.stop()
        raise StopMeasurement


def own_steps(trainer: Trainer, module: Any) -> Iterator[Tensor]:
    """The steps of our training without the loop around them: no loader, no callbacks but the average, no logging."""
    optimizer = trainer.optimizers[0]
    scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
    ema = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)  # type: ignore[attr-defined]
    batches = itertools.chain.from_iterable(itertools.repeat(trainer.datamodule))  # type: ignore[attr-defined]
    module.log = lambda *_, **__: None
    accumulate = trainer.accumulate_grad_batches
    for step in itertools.count(1):
        for index in range(accumulate):
            batch = trainer.strategy.batch_to_device(next(batches))
            with trainer.precision_plugin.train_step_context():
                loss = module.training_step(batch, index) / accumulate
            loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if ema is not None:
            ema.update(step)
        if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            module.look()  # as where the training logs
        yield loss
