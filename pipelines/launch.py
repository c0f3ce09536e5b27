"""What all stages need before they can start: checked data, a folder, loggers, and processes to run on."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.ema import EMA
from callbacks.pictures import History
from callbacks.progress import EpochLines
from callbacks.seeding import StepSeed
from esformer.training.data import ImageDataModule, device_batch_size
from esformer.training.datasets import resolve
from pipelines.config import Config, ConfigError
from pipelines.run import RunFolder, start_logging
from pipelines.search import stage
from pipelines.tracking import loggers


@contextmanager
def prepare(pipeline: str, config: Config, argv: Sequence[str] | None) -> Iterator[tuple[RunFolder, list[WandbLogger]]]:
    """The run's folder and loggers. Whatever is wrong with the configuration is said here, before any work."""
    start_logging()
    if config.genotype is not None and pipeline != "train":
        raise ConfigError("genotype is a setting of pipelines.train; a search finds its own")
    if pipeline != "search" or config.data.num_classes is None:  # a search looks at no image
        config.data = resolve(config.data)
    if pipeline != "train":
        stage(config, fabric=_fabric(config, devices=1))
    if pipeline != "search":
        _check_training(config)
    with RunFolder.open(pipeline, config, argv) as run:
        made = [] if run.summary.exists() else loggers(config, run)
        failed = True
        try:
            yield run, made
            failed = False
        finally:
            for logger in made:
                logger.experiment.finish(exit_code=int(failed))
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def search_fabric(config: Config, callbacks: list[Any], made: list[WandbLogger]) -> Fabric:
    """The Fabric on which all processes search that torchrun or SLURM started, or this one alone."""
    several = TorchElasticEnvironment.detect() or SLURMEnvironment.detect()
    t = config.trainer
    processes: dict[str, Any] = (
        dict(devices=t.devices, num_nodes=t.num_nodes, strategy="ddp") if several else dict(devices=1)
    )
    fabric = _fabric(config, callbacks=callbacks, loggers=list(made), **processes)
    try:
        fabric.launch()
    except ValueError as error:  # Lightning compares the numbers of processes
        raise ConfigError(f"trainer.devices={t.devices} is not what torchrun or SLURM started: {error}") from None
    return fabric


def _fabric(config: Config, **settings: Any) -> Fabric:
    try:
        return Fabric(accelerator=config.search.accelerator, **settings)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        name = config.search.accelerator
        raise ConfigError(f"search.accelerator is {name}, and there is none to search on: {error}") from None


def trainer(config: Config, run: RunFolder, made: list[WandbLogger]) -> Trainer:
    """The Trainer with everything that a run wants: averaged weights, checkpoints, pictures, progress."""
    r = config.recipe
    if torch.distributed.is_initialized():  # the search's processes spoke gloo; training may want another
        torch.distributed.destroy_process_group()
    bar = sys.stdout.isatty()
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    callbacks: list[Callback] = [
        *([EMA(r.ema_decay)] if r.ema else []),
        StepSeed(config.seed),
        History(run.path),
        EpochLines(),
        ModelCheckpoint(
            dirpath=run.checkpoints,
            filename="best",
            monitor="val_ema/top1" if r.ema else "val/top1",
            mode="max",
            save_last=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        *([LearningRateMonitor("step")] if made else []),
        *([RichProgressBar()] if bar else []),
    ]
    return Trainer(
        **_machine(config),
        accumulate_grad_batches=config.trainer.accumulate,
        max_epochs=r.epochs,
        callbacks=callbacks,
        logger=made or False,
        log_every_n_steps=config.trainer.log_every,
        num_sanity_val_steps=0,
        enable_progress_bar=bar,
        enable_model_summary=False,
        default_root_dir=run.path,
    )


def _machine(config: Config) -> dict[str, Any]:
    t = config.trainer
    names = ("accelerator", "devices", "num_nodes", "strategy", "precision")
    return {name: getattr(t, name) for name in names}


def _check_training(config: Config) -> None:
    """Refuse a machine that is not there, and images that cannot be read, before the search rather than after it."""
    t = config.trainer
    try:
        Trainer(**_machine(config), logger=False, enable_checkpointing=False, enable_model_summary=False)
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(f"the trainer cannot run as the settings trainer.* ask: {error}") from None
    device_batch_size(config.recipe.batch_size, t.devices * t.num_nodes, t.accumulate)
    data = ImageDataModule(config.data, config.recipe)
    try:
        data.setup("fit")
    except (AssertionError, KeyError) as error:  # timm's ways to refuse an augmentation
        name = config.recipe.auto_augment
        raise ConfigError(f"recipe.auto_augment={name} is no augmentation that timm knows ({error})") from None
    data.train_set[0], data.val_set[0]
