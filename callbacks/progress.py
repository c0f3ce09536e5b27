"""How far a stage is: bars for people on a terminal, a plain line now and then for a log."""

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from callbacks.speed import Speed
from esformer.search.callback import Search, SearchCallback, SearchResult
from esformer.search.journal import Evaluation
from esformer.search.ranking import Scored
from esformer.search.schedule import Phase
from esformer.throttle import Throttle

log = logging.getLogger("esformer")

REFRESH, WINDOW, READ = 0.1, 10.0, 2.0
"""Seconds: between two looks of a bar; over which that of a search averages the speed; between two losses read."""


class SearchProgress(SearchCallback):
    """The search's progress: phase, evaluations and how many a second, best score.

    Args:
        bar: draw a bar (for a terminal) instead of writing lines.
        every: seconds between two lines.
    """

    def __init__(self, bar: bool, every: float = 15) -> None:
        self._throttle = Throttle(REFRESH if bar else every)
        self._counts: deque[tuple[float, int]] = deque(maxlen=round(WINDOW / REFRESH) if bar else 2)
        self._side_by_side: dict[str, list[str]] = {}
        self._phases: list[str] = []
        self._best: dict[str, float] = {}
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if bar:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(TextColumn("search: {task.description}"), *columns)

    def on_search_start(self, stage: Search) -> None:
        schedule = stage.schedule
        steps = [[phase.name for phase in step] for step in schedule.steps()]
        self._side_by_side = {name: names for names in steps for name in names}
        for evaluation in stage.journal:
            self._see(evaluation)
        known = f", {len(stage.journal):,} evaluations known" if len(stage.journal) else ""
        log.info(
            "search: %g %s in space %s, budget %s%s",
            schedule.total,
            schedule.unit,
            stage.space.name,
            stage.budget,
            known,
        )
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=schedule.total)

    def on_evaluation(self, stage: Search, evaluation: Evaluation) -> None:
        self._see(evaluation)
        if self._throttle.due():
            self._say(stage, evaluation)

    def on_phase_end(self, stage: Search, phase: Phase, best: Scored) -> None:
        price = stage.cost(best.genotype)
        predicted = stage.costs.predicted is not None
        ms = f", {stage.costs.latency_ms(best.genotype):.3g} ms" if predicted else ""
        line = "search: %s ends at %s, %.3g M parameters, %.3g GMACs%s"
        log.info(line, phase.name, _scores(best.scores), price.params / 1e6, price.macs / 1e9, ms)

    def on_search_end(self, stage: Search, result: SearchResult) -> None:
        if self._bar is not None:
            self._bar.stop()
        log.info("search: %s evaluations in %.0f s", f"{result.evaluations:,}", result.seconds)

    def _see(self, evaluation: Evaluation) -> None:
        if evaluation.phase not in self._phases:  # those before it are over
            self._phases, self._best = self._side_by_side[evaluation.phase], {}
        for proxy, score in evaluation.scores.items():
            if score > self._best.get(proxy, -math.inf):
                self._best[proxy] = score

    def _say(self, stage: Search, evaluation: Evaluation) -> None:
        now = time.monotonic()
        self._counts.append((now, evaluation.evaluation))
        since, before = self._counts[0]
        rate = (evaluation.evaluation - before) / (now - since) if now > since else 0.0
        speed = f", {rate:{'.0f' if rate >= 10 else '.2g'}} evaluations/s" if rate else ""
        phase = evaluation.phase if len(self._phases) == 1 else evaluation.phase.rpartition(" ")[0]
        what = f"{phase}, best {_scores(self._best)}{speed}"
        counted = stage.schedule.unit == "evaluations"
        done = evaluation.evaluation if counted else round(evaluation.elapsed / 60, 1)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=what)
        else:
            log.info("search: %s of %g %s, %s", done, stage.schedule.total, stage.schedule.unit, what)


class EpochLines(Callback):
    """A line an epoch: loss, accuracy of raw and averaged weights, speed and time left; in long epochs lines between.

    Args:
        speed: what measures; comes before this one among the callbacks. Without it no speed is told.
        every: seconds between two lines within an epoch; None where a bar tells the same.
    """

    def __init__(self, speed: Speed | None = None, every: float | None = 60) -> None:
        self.speed = speed
        self._throttle = None if every is None else Throttle(every)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step and self.speed is not None:
            log.info("training: goes on after %s", _place(trainer, self.speed))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._throttle is not None:
            self._throttle.wait()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        speed, throttle = self.speed, self._throttle
        if speed is None or throttle is None or not trainer.is_global_zero or not throttle.due():
            return
        loss = _loss(trainer, outputs)
        told = [*([f"loss {loss:.4f}"] if loss is not None else []), *_speed(speed)]
        log.info("%s: %s", _place(trainer, speed), ", ".join(told))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.max_epochs is None:
            return
        values: dict[str, Any] = trainer.callback_metrics
        names = ("train/loss_epoch", "val/loss", "val/top1", "val/ema_top1")
        metrics = ", ".join(f"{name.removesuffix('_epoch')} {values[name]:.4f}" for name in names if name in values)
        speed = "; " + ", ".join(told) if self.speed is not None and (told := _speed(self.speed)) else ""
        log.info("epoch %d of %d: %s%s", trainer.current_epoch + 1, trainer.max_epochs, metrics, speed)


class TrainingBar(Callback):
    """One bar on a terminal: epoch, step, loss, top-1 of the last validation, images a second, time left.

    It draws on Rich's own console, as the log does, so lines stay above it. The loss is read seldom: reading it waits
    for the device.

    Args:
        speed: what measures; comes before this one among the callbacks.
    """

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._draws, self._reads = Throttle(REFRESH), Throttle(READ)
        self._loss: float | None = None
        self._top1: list[str] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if self._draws.due():
            if trainer.is_global_zero and self._reads.due():
                self._loss = _loss(trainer, outputs)
            self._show(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        known = [trainer.callback_metrics.get(name) for name in ("val/top1", "val/ema_top1")]
        self._top1 = [f"{value:.3f}" for value in known if value is not None]
        self._show(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._draw("validation", 0, _batches(trainer))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.is_global_zero and (self._draws.due() or batch_idx + 1 == _batches(trainer)):
            self._draw("validation", batch_idx + 1, _batches(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _show(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        told = [] if self._loss is None else [f"loss {self._loss:.3f}"]
        if self._top1:
            told.append(f"top-1 {' / '.join(self._top1)}")
        steps = self.speed.steps_per_epoch
        done = trainer.global_step - trainer.current_epoch * steps
        self._draw(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", done, steps, *told, *_speed(self.speed))

    def _draw(self, what: str, done: int, total: int, *told: str) -> None:
        if self._bar is None:
            whole = BarColumn(bar_width=None, table_column=Column(ratio=1))
            columns = (TextColumn("{task.description}"), whole, MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
            self._bar = Progress(*columns, console=get_console(), expand=True)
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, told="")
        fields: dict[str, Any] = {"told": "  ".join(told)} if told else {}
        self._bar.update(self._task, description=what, completed=done, total=total, **fields)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class EvaluationProgress(Callback):
    """How far an evaluation is: images and how many a second, those of all devices.

    Args:
        images: how many there are.
        bar: draw a bar (for a terminal) instead of writing lines.
        every: seconds between two lines.
    """

    def __init__(self, images: int, bar: bool, every: float = 15) -> None:
        self.images = images
        self._throttle = Throttle(REFRESH if bar else every)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(TextColumn("evaluation:"), *columns, console=get_console()) if bar else None
        self._task = TaskID(0)
        self._start = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        self._throttle.wait()
        if self._bar is not None and trainer.is_global_zero:
            self._bar.start()
            self._task = self._bar.add_task("", total=self.images)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        batches = _batches(trainer)
        if not trainer.is_global_zero or not (self._throttle.due() or batch_idx + 1 == batches):
            return
        done = round(self.images * (batch_idx + 1) / batches)
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        else:
            speed = done / max(1e-9, time.monotonic() - self._start)
            log.info("evaluation: %s of %s images, %.0f images/s", f"{done:,}", f"{self.images:,}", speed)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _batches(trainer: Trainer) -> int:
    """Of the validation that runs."""
    counts = trainer.num_val_batches
    return int(sum(counts) if isinstance(counts, list) else counts)


def _loss(trainer: Trainer, outputs: Any) -> float | None:
    """Of the batch just trained on: metrics are of the last log point. Waits for the device."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    return None if loss is None else float(loss) * trainer.accumulate_grad_batches  # Lightning divides it by that


def _place(trainer: Trainer, speed: Speed) -> str:
    epoch, step = divmod(max(0, trainer.global_step - 1), speed.steps_per_epoch)
    return f"epoch {epoch + 1} of {trainer.max_epochs}, step {step + 1} of {speed.steps_per_epoch}"


def _speed(speed: Speed) -> list[str]:
    told = [] if speed.images_per_second is None else [f"{speed.images_per_second:,.0f} images/s"]
    if speed.waiting is not None:
        told.append(f"{speed.waiting:.0%} waiting for images")
    left = speed.seconds_left
    return [*told, f"{duration(left)} left"] if left else told


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{proxy} {score:.5g}" for proxy, score in scores.items())


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min or 3.5 h."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
