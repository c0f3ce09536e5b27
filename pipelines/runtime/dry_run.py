"""Dry run: a run in small, before any of its time is spent. What `--dry-run` does.

Everything is built and tried on the real processes, devices and images: some evaluations of the search, some steps of
the global batch, some batches of validation, a checkpoint that is written and read. Then it says what the run needs.
No run is begun: no folder is claimed, nothing is logged, nothing stays behind.
"""

import itertools
import logging
import resource
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything

from callbacks.progress import duration
from configs.budget import budget, explain_auto
from configs.compose import to_yaml
from configs.schema import AUTO, Config
from esformer.benchmarks.trained import AnyArchitecture, price
from esformer.checkpoint import Checkpoint
from esformer.search.finalists import describe, rungs, seconds
from pipelines.runtime.build import accumulation, network, search_fabric, search_stage, trainer, try_memory
from pipelines.runtime.console import show
from pipelines.runtime.logs import is_main
from pipelines.runtime.plan import Plan
from pipelines.runtime.run_folder import RunError, RunFolder
from pipelines.runtime.start import given_genotype
from pipelines.runtime.watchdog import disconnect

log = logging.getLogger("esformer")

PARTS = ("search", "finalists", "training", "validation")
STEPS = 4
"""Steps of the training that are measured, and one before them."""
BATCHES = 3
"""Batches of the validation that are measured, and one before them."""
EVALUATIONS = 8
"""Of the search in each of its three kinds of phases, or as many as there are processes that score, if more."""


def dry_run(plan: Plan, genotype: AnyArchitecture | None = None, start: Checkpoint | None = None) -> dict[str, Any]:
    """Try a run in small, print what it will need, and return that.

    Args:
        plan: of the run.
        genotype: what is trained; by default the shipped one of the size, as what a search finds costs as much.
        start: the checkpoint that the training starts from.

    Raises:
        ESFormerError: what a real start would refuse.
    """
    config, run = plan.config, plan.run
    known = is_main() and run.check(run.title, to_yaml(config))
    found: dict[str, Any] = {"run": f"{run.path} ({'there already: it would go on' if known else 'not there yet'})"}
    if plan.trains:
        try_memory(plan, genotype)
    if plan.stage is not None:
        found["budget"] = str(budget(config))
        found |= {"budget_macs": explain_auto(config)} if config.budget.macs == AUTO else {}
        found |= try_search(plan)
    if plan.trains:
        genotype = genotype or given_genotype(config)
        with scratch(run.path) as folder:
            training = try_training(plan, genotype, folder, start)
        if plan.stage is not None and config.search.finalists:
            found |= price_finalists(config, training)
        if plan.pipeline == "search":  # there is no other training than theirs
            training = {name: value for name, value in training.items() if not name.endswith("_seconds")}
        found |= training
    disconnect()
    found |= _estimate(found)
    if is_main():
        show(readable(found))
    return found


def try_search(plan: Plan) -> dict[str, Any]:
    """A search of each kind of phase, a few evaluations long, by all processes."""
    config, fabric = plan.config, search_fabric(plan)
    fabric.launch()
    log.info("trying the search")
    length = max(EVALUATIONS, config.search.workers * fabric.world_size)
    s = config.search
    total = 3 * length if s.total > s.starts * s.start_length else length  # of each kind of phase that there is
    short = dict(unit="evaluations", starts=1, start_length=length, phase_length=length, total=total)
    result = search_stage(replace(config, search=replace(config.search, **short)), fabric).run()  # type: ignore[arg-type]
    elapsed = [evaluation.elapsed for evaluation in result.journal]
    half = len(elapsed) // 2  # the first wait for processes to start and weights to be drawn
    rate = (len(elapsed) - half) / max(elapsed[-1] - elapsed[half - 1], 1e-9)
    seconds = s.total * 60 if s.unit == "minutes" else s.total / rate
    return {"search_evaluations_per_second": rate, "search_seconds": seconds}


def try_training(
    plan: Plan, genotype: AnyArchitecture, folder: Path, start: Checkpoint | None = None
) -> dict[str, Any]:
    """Some steps, a validation and a checkpoint, which another training then reads.

    Args:
        plan: of the run.
        genotype: what is trained.
        folder: a place for the checkpoint; on the run's disk, so that one that is full or not to be written to is seen.
        start: the checkpoint that the training starts from.
    """
    plan = replace(plan, run=RunFolder(folder, ""))
    config, accumulate = plan.config, accumulation(plan, genotype)
    log.info("trying the training")
    watch = Watch(STEPS + -(-2 * config.data.loaders // accumulate))  # so many batches lie ready before the first step
    _fit(plan, genotype, watch, accumulate, start)
    log.info("trying how it goes on from a checkpoint")
    again = Watch(watch.stop_at + 1)
    longer = replace(config.recipe, epochs=config.recipe.epochs + 1)  # the steps may have been all that there are
    _fit(replace(plan, config=replace(config, recipe=longer)), genotype, again, accumulate, resume=plan.run.last)
    assert again.first_step == watch.stop_at, "the checkpoint was not taken up where it was written"
    costs = asdict(price(genotype, config.data.img_size, config.data.known_classes))
    return {"genotype": genotype.space, **costs, **watch.found()}


def price_finalists(config: Config, training: dict[str, Any]) -> dict[str, Any]:
    """What the finalists' trainings take: each runs on one device, so many epochs as devices take the time of one.

    Args:
        config: the run's configuration.
        training: what was found of the training on all devices together.
    """
    s, devices = config.search, training["processes"]
    epoch = devices * (training["training_seconds"] + training["validation_seconds"]) / training["epochs"]
    if s.finalists_minutes is not None:
        return {"finalists": f"{s.finalists} networks", "finalists_seconds": 60 * s.finalists_minutes}
    steps = rungs(s.finalists, s.finalists_epochs)
    return {"finalists": describe(steps), "finalists_seconds": seconds(steps, devices, epoch)}


def _fit(
    plan: Plan,
    genotype: AnyArchitecture,
    watch: "Watch",
    accumulate: int,
    start: Checkpoint | None = None,
    resume: Path | None = None,
) -> None:
    config, data = plan.config, plan.images
    assert data is not None
    data.accumulate = accumulate
    seed_everything(config.seed, verbose=False)
    fit = trainer(plan, [], accumulate)
    fit.callbacks.append(watch)  # type: ignore[attr-defined]
    fit.limit_val_batches = BATCHES + 2 * config.data.loaders
    fit.fit(network(config, genotype, start=start), data, ckpt_path=resume, weights_only=True)


class Watch(Callback):
    """Ends a training after some steps and a validation, and says what they took.

    Args:
        steps: after which to end; no more than an epoch has.
    """

    def __init__(self, steps: int) -> None:
        self.stop_at = steps
        self.first_step = 0
        self._seen = -1
        self._steps: list[float] = []
        self._batches: list[float] = []
        self._facts: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_step = self._seen = trainer.global_step
        epochs = trainer.max_epochs or 1
        steps = int(trainer.estimated_stepping_batches)
        if self.first_step == 0:
            self.stop_at = min(self.stop_at, steps // epochs)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._facts = {
            "device": _device(pl_module.device),
            "processes": trainer.world_size,
            "precision": trainer.precision,
            "accumulate": trainer.accumulate_grad_batches,
            "images_per_step": pl_module.hparams["recipe"]["batch_size"],
            "steps_per_epoch": steps // epochs,
            "epochs": epochs,
            "steps": steps,
        }
        self._steps.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._seen:  # a batch that is only accumulated
            return
        self._seen = trainer.global_step
        _wait(trainer)
        self._steps.append(time.perf_counter())
        trainer.should_stop = self._seen >= self.stop_at

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._facts["validation_batches"] = len(data.val_dataloader())
        self._batches.append(time.perf_counter())

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        _wait(trainer)
        self._batches.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            used = torch.cuda.max_memory_reserved(pl_module.device)
        else:
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        most = trainer.strategy.reduce(torch.tensor(float(used), device=pl_module.device), reduce_op="max")
        self._facts["memory_bytes"] = float(most)

    def found(self) -> dict[str, Any]:
        """Steps, memory and times."""
        step, batch = _pace(self._steps, STEPS - 1), _pace(self._batches, BATCHES - 1)
        return {
            **self._facts,
            "images_per_second": self._facts["images_per_step"] / step,
            "training_seconds": self._facts["steps"] * step,
            "validation_seconds": self._facts["epochs"] * self._facts["validation_batches"] * batch,
        }


def _wait(trainer: Trainer) -> None:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _pace(moments: list[float], last: int) -> float:
    """Seconds between two moments, of the last ones; the first of several begins with workers that start."""
    between = [b - a for a, b in itertools.pairwise(moments)]
    return statistics.fmean(between[1:][-last:] or between)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A folder that all processes know by its name, beside another; afterwards nothing of it is left."""
    folder = beside.parent / f".{beside.name}.dry-run"
    missing = [parent for parent in folder.parents if not parent.exists()]
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)  # of a dry run that was killed
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"{folder.parent} cannot be written ({error.strerror}); choose another run.dir") from None
    try:
        yield folder
    finally:
        if is_main():
            shutil.rmtree(folder, ignore_errors=True)
            for parent in missing:
                with suppress(OSError):  # something else is in it by now
                    parent.rmdir()


def _estimate(found: dict[str, Any]) -> dict[str, Any]:
    """How long the run takes in all."""
    seconds = sum(found.get(f"{part}_seconds", 0.0) for part in PARTS)
    try:
        end = (datetime.now() + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M")
    except OverflowError:
        end = "after the year 9999"
    return {"seconds": seconds, "end": end}


def readable(found: dict[str, Any]) -> dict[str, Any]:
    """The figures in the units that people use."""
    times = [f"{part} {duration(found[f'{part}_seconds'])}" for part in PARTS if f"{part}_seconds" in found]
    rows = {key: value for key, value in found.items() if not key.endswith("seconds") and key != "end"}
    if "memory_bytes" in rows:
        rows["memory"] = f"{rows.pop('memory_bytes') / 2**30:.2f} GiB a process at most"
    return rows | {"time": f"{duration(found['seconds'])}: {', '.join(times)}", "end_if_begun_now": found["end"]}
