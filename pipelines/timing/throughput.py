"""Throughput: images a second of our training, beside timm's own `train.py`, on the same network, batch and machine.

What `python -m pipelines.train --speed` prints. Both train by turns in one process, so that whatever else the machine
does disturbs both alike; what counts is the ratio of neighbouring turns.
"""

import logging
import statistics
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from configs.schema import Config, ConfigError
from esformer.benchmarks.trained import AnyArchitecture
from esformer.data.base import DataError
from esformer.data.datamodule import ImageDataModule, device_batch_size
from esformer.data.datasets import resolve
from esformer.data.in_memory import InMemoryDataModule
from esformer.errors import ESFormerError, out_of_memory
from esformer.genotype import Genotype
from pipelines.runtime.build import accumulation, bare_trainer, network, trainer
from pipelines.runtime.console import console, show_rows
from pipelines.runtime.logs import start_logging
from pipelines.runtime.memory import precision, ran_out
from pipelines.runtime.plan import Plan
from pipelines.runtime.processes import processes, with_workers
from pipelines.runtime.run_folder import RunFolder
from pipelines.timing.interleaved import (
    OURS,
    TIMM,
    WARM,
    Clock,
    Meter,
    Steps,
    StopMeasurement,
    timm_backend_flags,
)
from pipelines.timing.timm_train import TimmTraining

log = logging.getLogger("esformer")

TURNS = 6
"""Turns that each side has of a whole loop."""
PRECISIONS = {"32-true": False, "bf16-mixed": True}
"""What train.py has too, and whether it is mixed precision."""
TABLE_2: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine", "loss": "bce"}
TABLE_2 |= {"crop_padding": 0, "color_jitter": [], "cutout": 0}
"""What timm's training, as it is set up here, knows nothing else of."""
EPOCH = 1_281_167
"""Images of an epoch in memory: as ImageNet has."""


def speed(config: Config, genotype: AnyArchitecture, steps: int = 20) -> dict[str, Any]:
    """Measure, print a table, and return what it shows.

    Args:
        config: its recipe, `data` and trainer; of the trainer's devices one is measured.
        genotype: what is trained.
        steps: of each side that are measured for each line of the table.

    Raises:
        ConfigError: the precision is none that train.py has.
        NoMemoryError: the device does not hold both trainings.
    """
    start_logging()
    if not isinstance(genotype, Genotype):
        raise ConfigError(f"--speed compares ESFormers, and this network is of space {genotype.space}")
    for name, value in TABLE_2.items():
        if getattr(config.recipe, name) != value:
            raise ConfigError(
                f"recipe.{name} is {getattr(config.recipe, name)}; --speed trains as Table 2, so it needs {value}"
            )
    if steps < 1:
        raise ESFormerError(f"{steps} steps are too few to measure; give at least 1")
    arithmetic = precision(config.trainer)
    if arithmetic not in PRECISIONS:
        raise ConfigError(f"trainer.precision is {arithmetic}; --speed compares {', '.join(PRECISIONS)}")
    if config.recipe.freeze:
        raise ConfigError(f"recipe.freeze is {config.recipe.freeze}; train.py trains all stages, so --speed needs 0")
    config = replace(config, trainer=replace(config.trainer, devices=1, num_nodes=1, precision=arithmetic))
    images, data = with_workers(config.data, processes(config)), None
    try:
        images = resolve(images)
        data = ImageDataModule(images, config.recipe, config.seed)
    except DataError as error:
        log.info("measured on random images only: %s", error)
        images = replace(images, num_classes=images.known_classes)
    config = replace(config, data=images)
    accumulate = accumulation(plan_of(config), genotype)
    config = replace(config, trainer=replace(config.trainer, accumulate=accumulate))
    if data is not None:
        data.accumulate = accumulate
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = Comparison(config, genotype, Path(folder)).measure(steps, data)
    except Exception as error:  # timm's training is there at the same time, and was not tried
        raise (ran_out(config.recipe.batch_size, 1, accumulate) if out_of_memory(error) else error) from None
    show(found)
    return found


def plan_of(config: Config, folder: Path = Path()) -> Plan:
    """The plan of a training that is only measured: nothing but its device is checked."""
    plan = Plan("train", config, processes(config), RunFolder(folder, ""))
    return replace(plan, device=bare_trainer(plan).strategy.root_device)


class Comparison:
    """Both trainings of one configuration, on one device.

    Args:
        config: as of `speed`.
        genotype: what is trained.
        folder: where our run lies.
    """

    def __init__(self, config: Config, genotype: Genotype, folder: Path) -> None:
        self.config, self.genotype, self.plan = config, genotype, plan_of(config, folder)
        self.accumulate = accumulation(self.plan, genotype)
        self.batch_size = device_batch_size(config.recipe.batch_size, 1, self.accumulate)
        self.device = self._trainer().strategy.root_device
        c = config
        made_up = replace(c.data, name="synthetic", root=None, limit=None, train_images=EPOCH, val_images=1, workers=0)
        self.memory = InMemoryDataModule(made_up, c.recipe, c.seed, self.accumulate)
        self.memory.setup("fit")

    def measure(self, steps: int, data: ImageDataModule | None) -> dict[str, Any]:
        """All the figures of the table."""
        found: dict[str, Any] = {
            "network": f"ESFormer of space {self.genotype.space}",
            "img_size": self.config.data.img_size,
        }
        found |= {"batch_size": self.batch_size, "accumulate": self.accumulate}
        found |= {"precision": self.config.trainer.precision, "torch": torch.__version__, "device": self._device_name()}
        found |= {"threads": torch.get_num_threads(), "lines": {"step": self.step(steps)}}
        log.info("step measured")
        found["lines"]["loop, images in memory"] = self.loop(steps, self.memory)
        log.info("loop measured, images in memory")
        if data is not None:
            found["lines"][f"loop, images of {self.config.data.name}"] = self.loop(steps, data)
        return found

    def step(self, steps: int) -> dict[str, Any]:
        """The step alone: from a batch of bytes that is there to the new weights and their average."""
        meter = Meter(self.device)
        turn = 1 if self.device.type == "cpu" else -(-steps // TURNS)  # a GPU is fed ahead
        theirs = self._timm(self.memory).in_memory(*self.memory.batch)
        self._fit(self.memory, Steps(meter, theirs, turn, -(-steps // turn)))
        return self._line(meter, turn)

    def loop(self, steps: int, data: ImageDataModule) -> dict[str, Any]:
        """The whole loop, each side for some steps at a time, started anew.

        Args:
            steps: to measure of each side.
            data: the images.
        """
        meter, turn = Meter(self.device), -(-steps // TURNS)
        skip = WARM + 2 * data.config.loaders  # so many batches lie ready
        sides = [OURS, TIMM]
        with meter.watched():
            for _ in range(TURNS):
                for side in sides:
                    with meter.peak(side):
                        if side == OURS:
                            self._fit(data, Clock(meter, skip, turn))
                        else:
                            self._theirs(data, meter, skip, turn)
                sides.reverse()  # so that what grows or shrinks all the time favours neither
        return self._line(meter, turn)

    def _fit(self, data: ImageDataModule, callback: Callback) -> None:
        """Our training, until the callback has enough."""
        fit = self._trainer()
        fit.callbacks.append(callback)  # type: ignore[attr-defined]
        fit.limit_val_batches = 0
        fit.fit_loop.max_epochs = sys.maxsize
        with suppress(StopMeasurement):
            fit.fit(network(self.config, self.genotype), data)

    def _trainer(self) -> Trainer:
        return trainer(self.plan, [CSVLogger(self.plan.run.path)], self.accumulate)

    def _theirs(self, data: ImageDataModule, meter: Meter, skip: int, turn: int) -> None:
        training = self._timm(data)
        if isinstance(data, InMemoryDataModule):
            losses = training.in_memory(*data.batch)
        else:
            losses = training.steps(training.loader(self.batch_size))
        with timm_backend_flags(self.device):
            for _ in range(skip):
                next(losses)
            meter.start(TIMM)
            for _ in range(turn):
                next(losses)
            meter.stop()

    def _timm(self, data: ImageDataModule) -> TimmTraining:
        c, t = self.config, self.config.trainer
        data.setup("fit")
        return TimmTraining(
            self.genotype,
            c.recipe,
            data.config,
            data.steps_per_epoch,
            self.device,
            PRECISIONS[precision(t)],
            self.accumulate,
            t.compile,
        )

    def _line(self, meter: Meter, turn: int) -> dict[str, Any]:
        """Images a second of both sides, and their ratio turn by turn, each with its quartiles."""
        images = turn * self.config.recipe.batch_size
        line: dict[str, Any] = {side: _spread([images / s for s in meter.seconds[side]]) for side in (OURS, TIMM)}
        for name, times in (("ratio", meter.seconds), ("processor_ratio", meter.worked)):
            line[name] = _spread([b / a for a, b in zip(times[OURS], times[TIMM], strict=True)])
        line["busy"] = {side: statistics.fmean(values) for side, values in meter.busy.items() if values}
        return line | {"memory": meter.memory}

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return torch.backends.cpu.get_cpu_capability()


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    return {"median": median.item(), "low": low.item(), "high": high.item()}


def show(found: dict[str, Any]) -> None:
    """Print the figures as a table."""
    accumulated = f" x {found['accumulate']} accumulated" if found["accumulate"] > 1 else ""
    console().print(
        f"{found['network']}, {found['img_size']} px, batch {found['batch_size']}{accumulated}, {found['precision']},"
        f" {found['device']}, {found['threads']} threads, PyTorch {found['torch']}."
    )
    show_rows(table(found["lines"]), title="Images a second: median (quartiles)", title_justify="left")
    console().print("timm's train.py clips, averages and logs in its own ways: adaptive clipping tensor by tensor.")


def table(lines: dict[str, Any]) -> list[list[str]]:
    """A head and a row for each line, with what tells something on this device.

    Where the CPU trains, other processes take part of its time, and so the time that this one had says more; it is that
    of the training alone, without the processes that load images.
    """
    rows = [["", OURS, "timm's train.py", "ours / timm's"]]
    gpu = any(line["memory"] for line in lines.values())
    rows[0] += ["GPU busy, percent", "memory, GiB"] if gpu else ["of processor time"]
    for name, line in lines.items():
        row = [name, *(_text(line[what]) for what in (OURS, TIMM, "ratio"))]
        if not gpu:
            row.append(_text(line["processor_ratio"]))
        else:
            row.append(_pair(line["busy"], 1, "{:.0f}"))
            row.append(_pair(line["memory"], 2**30, "{:.2f}"))
        rows.append(row)
    return rows


def _text(spread: dict[str, float]) -> str:
    return f"{spread['median']:.4g} ({spread['low']:.4g} to {spread['high']:.4g})"


def _pair(values: dict[str, float], unit: float, form: str) -> str:
    return ", ".join(f"{side} {form.format(values[side] / unit)}" for side in (OURS, TIMM) if side in values)
