"""How fast training goes, and how long it will last."""

import logging
import time
from collections import deque
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

log = logging.getLogger("esformer")

RECENT = 20
"""The time left is told from the speed over so many log points."""


MUCH = 0.2
"""Share of the time that training may wait for images before the log says so."""

SURE = 30.0
"""Seconds of measured steps before it does."""


class Waiting(Profiler):
    """Seconds between asking the loader of the training images for a batch and having it; the Trainer's profiler."""

    ACTION = "[_TrainingEpochLoop].train_dataloader_next"

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._began = 0.0

    def start(self, action_name: str) -> None:
        if action_name == self.ACTION:
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name == self.ACTION:
            self.seconds += time.perf_counter() - self._began


class Speed(Callback):
    """Measures the training loop, and tells the loggers every few steps what no checkpoint should depend on.

    At a log point it sends `lr` (of the step just made), `train/images_per_second`, `train/step_seconds`,
    `train/waiting` (the share of the time in which this rank waited for images, where the Trainer's profiler is a
    `Waiting`) and `train/hours_left`, under the step that Lightning gives to the losses of the same batch. A step lasts
    from the end of the one before it, so waiting for images counts; validations and checkpoints do not, and neither
    does the first step of a session, which compiles and starts the workers.

    Only the clock is read at each step: nothing waits for the device. Single steps of a GPU would look too short, for
    they are queued, but the queue is short beside the steps between two log points. Lightning's `ThroughputMonitor`
    waits for the device after every batch, counts checkpoints and the first step as training, and tells loggers alone;
    its `LearningRateMonitor` has a name for each group of parameters.

    Args:
        batch_size: images of a step, on all devices together.
        log_every: steps between two log points.
    """

    def __init__(self, batch_size: int, log_every: int = 50) -> None:
        self.batch_size, self.log_every = batch_size, log_every
        self.lr = 0.0
        """Of the step in progress, or the one just made."""
        self.logged = False
        """Whether the batch that just ended is a log point."""
        self.steps_per_epoch = 0
        """Optimiser steps, not batches."""
        self.window = (0, 0.0)
        """Steps measured before the last log point and their seconds."""
        self._total = 0
        self._step = 0
        self._counted, self._spent = 0, 0.0
        self._waits: Waiting | None = None
        self._waited = 0.0  # in the steps counted
        self._before = 0.0  # what had been waited at `_since`
        self._all = (0.0, 0.0)  # seconds of this session's steps, and those of them waited
        self._told = False  # that it is much
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=RECENT)
        self._warm = False  # after the first step of the session
        self._since: float | None = None  # the end of the last step; None if what came after it was no step
        self._validating = 0.0
        self._validation, self._validations = 0.0, 0  # seconds of one; how many are left

    @property
    def images_per_second(self) -> float | None:
        """Over the last log points and since then; None before anything was measured."""
        seconds = self.step_seconds
        return self.batch_size / seconds if seconds else None

    @property
    def step_seconds(self) -> float | None:
        """Seconds a step, over the last log points and since then; None before anything was measured."""
        steps = sum(steps for steps, *_ in self._recent) + self._counted
        seconds = sum(seconds for _, seconds, _ in self._recent) + self._spent
        return seconds / steps if steps and seconds > 0 else None

    @property
    def waiting(self) -> float | None:
        """Share of the time that waited for images, over the last log points and since then."""
        seconds = sum(seconds for _, seconds, _ in self._recent) + self._spent
        waited = sum(waited for *_, waited in self._recent) + self._waited
        return waited / seconds if self._waits is not None and seconds > 0 else None

    @property
    def waited(self) -> float | None:
        """The same share over all steps of this session."""
        seconds, waited = self._all
        return waited / seconds if self._waits is not None and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """To the end of the last epoch, each with a validation as long as the last one; None while that is unknown."""
        if self.step_seconds is None:
            return None
        return max(0, self._total - self._step) * self.step_seconds + self._validations * self._validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = int(trainer.estimated_stepping_batches)
        epochs = trainer.max_epochs or 1
        self.steps_per_epoch = max(1, self._total // epochs)
        self._validations = epochs - trainer.current_epoch
        self._step, self._since, self._warm = trainer.global_step, None, False
        self._counted, self._spent, self._waited = 0, 0.0, 0.0
        self._recent.clear()
        profiler: Any = trainer.profiler  # type: ignore[attr-defined]
        self._waits = profiler if isinstance(profiler, Waiting) else None
        self._all, self._told = (0.0, 0.0), False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._warm:
            self._since, self._before = time.perf_counter(), self._waited_so_far()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.lr = learning_rate(trainer)  # after the step it is the next one's

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.logged = False
        if trainer.global_step == self._step:  # a batch whose gradients wait for others
            return
        now, waited = time.perf_counter(), self._waited_so_far()
        if self._since is not None:
            self._counted, self._spent = self._counted + 1, self._spent + now - self._since
            self._waited += waited - self._before
            self._all = (self._all[0] + now - self._since, self._all[1] + waited - self._before)
        self._since, self._before, self._warm, self._step = now, waited, True, trainer.global_step
        if self._step % self.log_every == 0:
            self.logged = True
            self.window = (self._counted, self._spent)
            if self._counted:
                self._recent.append((*self.window, self._waited))
            waited = self._waited
            self._counted, self._spent, self._waited = 0, 0.0, 0.0
            for logger in trainer.loggers:
                logger.log_metrics(self._values(waited), step=self._step - 1)  # Lightning counts from 0
            self._say_waiting(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._since = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation = time.perf_counter() - self._validating
        self._validations = max(0, self._validations - 1)
        self._since = None

    def _waited_so_far(self) -> float:
        return 0.0 if self._waits is None else self._waits.seconds

    def _say_waiting(self, trainer: Trainer) -> None:
        """Say once that training waits for images, once that has been measured for long enough."""
        share = self.waiting
        if self._told or share is None or share <= MUCH or self._all[0] < SURE:
            return
        self._told = True
        config = getattr(getattr(trainer, "datamodule", None), "config", None)
        now = "" if config is None else f" (now {config.loaders})"
        words = "training waits for images %.0f %% of the time; more data.workers%s help where there are CPUs for them"
        log.warning(words, 100 * share, now)

    def _values(self, waited: float) -> dict[str, float]:
        values = {"lr": self.lr}
        steps, seconds = self.window
        if steps and seconds > 0:
            values["train/images_per_second"] = self.batch_size * steps / seconds
            values["train/step_seconds"] = seconds / steps
            if self._waits is not None:
                values["train/waiting"] = waited / seconds
        if (left := self.seconds_left) is not None:
            values["train/hours_left"] = left / 3600
        return values


def learning_rate(trainer: Trainer) -> float:
    """That of the classifier: layer decay lowers those of all before it."""
    rates: list[float] = [group["lr"] for group in trainer.optimizers[0].param_groups]
    return max(rates)
