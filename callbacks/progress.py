"""How far a stage is: bars for people on a terminal, a plain line now and then for a log."""

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from esformer.search.evolution import Scored
from esformer.search.journal import Evaluation
from esformer.search.schedule import Phase
from esformer.search.stage import SearchCallback, SearchResult, SearchStage

log = logging.getLogger("esformer")

REFRESH, WINDOW = 0.1, 10.0
"""Seconds: between two looks of a bar; over which it averages the speed."""


class SearchProgress(SearchCallback):
    """The search's progress: phase, evaluations and how many a second, best score.

    Args:
        bar: draw a bar (for a terminal) instead of writing lines.
        every: seconds between two lines.
    """

    def __init__(self, bar: bool, every: float = 15) -> None:
        self._every = REFRESH if bar else every
        self._next = 0.0
        self._counts: deque[tuple[float, int]] = deque(maxlen=round(WINDOW / REFRESH) if bar else 2)
        self._side_by_side: dict[str, list[str]] = {}
        self._phases: list[str] = []
        self._best: dict[str, float] = {}
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if bar:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(TextColumn("search: {task.description}"), *columns)

    def on_search_start(self, stage: SearchStage) -> None:
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

    def on_evaluation(self, stage: SearchStage, evaluation: Evaluation) -> None:
        self._see(evaluation)
        if (now := time.monotonic()) >= self._next:
            self._next = now + self._every
            self._say(stage, evaluation, now)

    def on_phase_end(self, stage: SearchStage, phase: Phase, best: Scored) -> None:
        price = stage.cost(best.genotype)
        line = "search: %s ends at %s, %.2f M parameters, %.3f GMACs"
        log.info(line, phase.name, _scores(best.scores), price.params / 1e6, price.macs / 1e9)

    def on_search_end(self, stage: SearchStage, result: SearchResult) -> None:
        if self._bar is not None:
            self._bar.stop()
        log.info("search: %s evaluations in %.0f s", f"{result.evaluations:,}", result.seconds)

    def _see(self, evaluation: Evaluation) -> None:
        if evaluation.phase not in self._phases:  # those before it are over
            self._phases, self._best = self._side_by_side[evaluation.phase], {}
        for proxy, score in evaluation.scores.items():
            if score > self._best.get(proxy, -math.inf):
                self._best[proxy] = score

    def _say(self, stage: SearchStage, evaluation: Evaluation, now: float) -> None:
        self._counts.append((now, evaluation.evaluation))
        since, before = self._counts[0]
        speed = f", {(evaluation.evaluation - before) / (now - since):.0f} evaluations/s" if now > since else ""
        phase = evaluation.phase if len(self._phases) == 1 else evaluation.phase.rpartition(" ")[0]
        what = f"{phase}, best {_scores(self._best)}{speed}"
        counted = stage.schedule.unit == "evaluations"
        done = evaluation.evaluation if counted else round(evaluation.elapsed / 60, 1)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=what)
        else:
            log.info("search: %s of %g %s, %s", done, stage.schedule.total, stage.schedule.unit, what)


class EpochLines(Callback):
    """A line an epoch: loss, accuracy of raw and averaged weights, time left."""

    def __init__(self) -> None:
        self._began = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self._first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.max_epochs is None:
            return
        done = trainer.current_epoch + 1
        seconds = (time.monotonic() - self._began) / (done - self._first)
        values: dict[str, Any] = trainer.callback_metrics
        names = ("train/loss_epoch", "val/loss", "val/top1", "val_ema/top1")
        metrics = ", ".join(f"{name.removesuffix('_epoch')} {values[name]:.4f}" for name in names if name in values)
        left = (trainer.max_epochs - done) * seconds
        log.info(
            "epoch %d of %d: %s; %.0f s an epoch, %s left", done, trainer.max_epochs, metrics, seconds, _time(left)
        )


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{proxy} {score:.5g}" for proxy, score in scores.items())


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
