"""What a run is built of: checked data, a folder, loggers, the search stage, the network, Fabric and Trainer."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy as FabricDDP
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.parallel import DistributedDataParallel

from callbacks.accumulation import Accumulation
from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from callbacks.ema import EMA
from callbacks.history import History
from callbacks.progress import EpochLines, TrainingBar
from callbacks.speed import Speed, Waiting
from configs.budget import budget
from configs.schema import Config, ConfigError
from esformer.checkpoint import Checkpoint
from esformer.checkpoint.loading import install
from esformer.data.base import DataError
from esformer.data.datamodule import ImageDataModule, SampleIndex, device_batch_size
from esformer.data.datasets import DataConfig, resolve
from esformer.data.sample import sample_images
from esformer.errors import STOPPED
from esformer.genotype import Genotype
from esformer.search.batch import looks_at_a_batch
from esformer.search.stage import SearchStage
from esformer.space import SearchSpace
from esformer.training.module import ESFormerModule
from esformer.training.sync_batchnorm import SyncNorms
from pipelines.runtime import preflight, tracking
from pipelines.runtime.processes import check_gpus, processes, settle_workers
from pipelines.runtime.run_folder import RunFolder, start_logging
from pipelines.runtime.signals import stop
from pipelines.runtime.watchdog import disconnect, watchdog

BACKENDS = "cpu:gloo,cuda:nccl"
"""How processes speak with each other where there are GPUs: what is on the CPU does not wait for them."""
subprocess_script._launch_process_observer = watchdog.adopt  # type: ignore[assignment]

# PyTorch 2.13 renamed the setting; norm statistics of other ranks than the first count nowhere, and are sent before
# each validation
_RENAMED = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
DDP: dict[str, Any] = {
    "forward_sync_buffers" if _RENAMED else "broadcast_buffers": False,
    "gradient_as_bucket_view": True,
}
"""No copies between processes, nor out of the buckets of gradients, that nobody needs."""


@contextmanager
def prepare(
    pipeline: str, config: Config, argv: Sequence[str] | None, genotype: Genotype | None = None
) -> Iterator[tuple[RunFolder, list[WandbLogger]]]:
    """The run's folder and loggers. Whatever is wrong with the configuration is said here, before any work.

    Args:
        pipeline: `full`, `search` or `train`.
        config: the run's configuration.
        argv: the run's arguments.
        genotype: what is trained, if that is known.
    """
    check(pipeline, config)
    with RunFolder.open(pipeline, config, argv) as run:
        if trains(pipeline, config) and not run.summary.exists():  # in the folder: nobody else trains in it now
            try_memory(config, genotype or (Genotype.load(run.genotype) if run.genotype.exists() else None))
        made = [] if run.summary.exists() else tracking.loggers(config, run)
        finish = partial(tracking.finish, made)
        watchdog.farewells.append(finish)
        code: Any = 1
        try:
            yield run, made
            code = 0
        except SystemExit as end:
            code = end.code
            raise
        finally:
            watchdog.announce_end("failed" if code not in (0, STOPPED) else "done")  # finishing can take long
            watchdog.farewells.remove(finish)
            finish(code if isinstance(code, int) else 1)
        disconnect()


def check(pipeline: str, config: Config) -> None:
    """Refuse what cannot run, before any work and before a folder is claimed; finds the images.

    Raises:
        ESFormerError: it says what is wrong, and what would be right.
    """
    start_logging()
    processes(config)
    for name in ("genotype", "init"):
        if getattr(config, name) is not None and pipeline != "train":
            raise ConfigError(f"{name} is a setting of pipelines.train; a search finds its own genotype")
    if trains(pipeline, config) or config.data.num_classes is None:  # a search alone looks at no image
        config.data = _resolve(pipeline, config)
    settle_workers(config)
    if pipeline != "train":
        search_stage(config, fabric=_fabric(config, devices=_own_device(config), plugins=[LightningEnvironment()]))
    if trains(pipeline, config):
        _check_training(config)


def trains(pipeline: str, config: Config) -> bool:
    """Whether a pipeline trains networks: a search does if it has finalists."""
    return pipeline != "search" or config.search.finalists > 0


def _resolve(pipeline: str, config: Config) -> DataConfig:
    """The images, which must be there."""
    try:
        return resolve(config.data)
    except DataError as error:
        if pipeline == "search" and config.search.finalists:
            raise ConfigError(f"search.finalists={config.search.finalists} trains on images, but {error}") from None
        raise


def search_stage(config: Config, **where: Any) -> SearchStage:
    """The search that the configuration asks for, not yet run.

    Args:
        config: the configuration.
        where: checkpoint and fabric of the stage.

    Raises:
        ESFormerError: it asks for what cannot be: a budget that nothing fits, an unknown proxy.
    """
    where |= _batch(config)
    return SearchStage(
        SearchSpace.for_size(config.size, config.search.extended),
        budget(config),
        config.search,
        seed=config.seed,
        img_size=config.search.img_size,
        draws=config.search.draws,
        cost_img_size=config.data.img_size,
        num_classes=config.data.known_classes,
        workers=config.search.workers,
        batch_size=config.search.batch_size,
        **where,
    )


def _batch(config: Config) -> dict[str, Any]:
    """The images and labels of `search.batch=data`, where a proxy of the schedule looks at any; otherwise nothing."""
    s = config.search
    if s.batch != "data" or not looks_at_a_batch(s):
        return {}
    images, labels = sample_images(config.data, s.batch_size, s.img_size, config.seed)
    return {"images": images, "labels": labels}


def search_fabric(config: Config, callbacks: list[Any], made: list[WandbLogger]) -> Fabric:
    """The Fabric on which all processes search that torchrun or SLURM started, or this one alone.

    They stay connected, and train together over the same connections. To disconnect and meet again at the same port is
    a race: one that is quick finds the other's old meeting point, which closes on it.
    """
    found = processes(config)
    settings: dict[str, Any] = dict(devices=1)
    if found.starter is not None:
        settings = found.settings()
        if found.world_size > 1:
            settings["strategy"] = FabricDDP(process_group_backend=_backend(config))
    fabric = _fabric(config, callbacks=callbacks, loggers=list(made), **settings)
    fabric.launch()
    return fabric


def _own_device(config: Config) -> int | list[int]:
    """What Fabric is to be told of the device on which this process searches, when it is to search alone."""
    if config.search.accelerator == "cpu" or not torch.cuda.is_available():
        return 1
    return [(processes(config).environment or LightningEnvironment()).local_rank()]


def _fabric(config: Config, **settings: Any) -> Fabric:
    try:
        return Fabric(accelerator=config.search.accelerator, **settings)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        name = config.search.accelerator
        raise ConfigError(f"search.accelerator is {name}, and there is none to search on: {error}") from None


def network(
    config: Config,
    genotype: Genotype,
    provenance: dict[str, Any] | None = None,
    start: Checkpoint | None = None,
) -> ESFormerModule:
    """What a run of this configuration trains, with the weights of a checkpoint to start from or random ones."""
    c, t = config, config.trainer
    assert c.data.num_classes is not None
    module = ESFormerModule(genotype, c.recipe, c.data.num_classes, c.data.img_size, provenance, t.max_skipped, c.seed)
    if start is not None:
        install(start, module.model)
    if t.grad_checkpointing:
        module.model.set_grad_checkpointing()
    if t.compile:
        module.model.compile()
    return module


def accumulation(config: Config, genotype: Genotype, margin: float = 1.0) -> int:
    """Batches that make a step which fits into the memory of this process's device; `preflight` says how it is found.

    Args:
        config: the run's configuration.
        genotype: what is trained.
        margin: so many times the images of the step must fit.

    Raises:
        NoMemoryError: the number that the configuration asks for does not fit; it says what would.
    """
    found, device = processes(config), bare_trainer(config).strategy.root_device
    return preflight.accumulation(config, genotype, device, found.world_size, found.devices, margin)


def try_memory(config: Config, genotype: Genotype | None) -> int:
    """The same before a search, when the genotype need not be known yet."""
    if genotype is not None:
        return accumulation(config, genotype)
    return accumulation(config, Genotype.shipped(f"esformer_{config.size.lower()}"), preflight.UNFOUND)


def trainer(config: Config, run: RunFolder, made: list[WandbLogger], accumulate: int) -> Trainer:
    """The Trainer with everything that a run wants: averaged weights, checkpoints, pictures, progress.

    Args:
        config: the run's configuration.
        run: where it lies.
        made: its loggers.
        accumulate: batches that make a step on this rank; with `trainer.accumulate=auto` others may need more.
    """
    r, t = config.recipe, config.trainer
    bar = sys.stdout.isatty()
    if t.threads is not None:
        torch.set_num_threads(t.threads)
    speed = Speed(r.batch_size, t.log_every)
    callbacks: list[Callback] = [
        *([EMA(r.ema_decay)] if r.ema else []),
        speed,
        History(run.path, speed),
        EpochLines(speed, every=None if bar else 60),
        *([TrainingBar(speed)] if bar else []),
        *([Accumulation(accumulate, r.batch_size, t.sync_batchnorm)] if t.accumulate == "auto" else []),
        Checkpoints(run.checkpoints, "val/ema_top1" if r.ema else "val/top1", t.save_minutes, stop.look, stop.agreed),
    ]
    made_trainer = Trainer(
        **_machine(config),
        accumulate_grad_batches=accumulate,
        max_epochs=r.epochs,
        callbacks=callbacks,
        logger=made or False,
        profiler=Waiting(),
        log_every_n_steps=t.log_every,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        benchmark=True,  # all images have one size
        enable_model_summary=False,
        default_root_dir=run.path,
    )
    # Lightning's signal handlers speak to the other ranks from within the handler, and its check for a SIGTERM makes
    # every step wait for the device; Checkpoints does both in better order
    made_trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    made_trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return made_trainer


def bare_trainer(config: Config, **settings: Any) -> Trainer:
    """A Trainer on the devices of a configuration, which leaves nothing behind.

    Raises:
        ConfigError: there are no such devices, or they do not work together like that.
    """
    settings |= dict(logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False)
    try:
        return Trainer(**_machine(config), **settings)
    except (MisconfigurationException, ValueError, RuntimeError, TypeError, ImportError) as error:
        raise ConfigError(f"the trainer cannot run as the settings trainer.* ask: {error}") from None


def _machine(config: Config) -> dict[str, Any]:
    t, found = config.trainer, processes(config)
    settings = found.settings()
    several = found.world_size > 1 or t.strategy != "auto"
    return settings | {
        "plugins": [
            *settings["plugins"],
            AtomicCheckpointIO(),
            *([SyncNorms(preflight.on_gpus(t), found.world_size)] if t.sync_batchnorm else []),
        ],
        "accelerator": t.accelerator,
        "strategy": DDPStrategy(process_group_backend=_backend(config), **DDP) if several else "auto",
        "precision": preflight.precision(t),
        "use_distributed_sampler": False,  # ours give each rank its share
    }


def _backend(config: Config) -> str:
    """The same for the search and the training, which share their connections."""
    on_gpus = torch.cuda.is_available() and {config.search.accelerator, config.trainer.accelerator} != {"cpu"}
    return BACKENDS if on_gpus else "gloo"


def _check_training(config: Config) -> None:
    """Refuse a machine that is not there, and images that cannot be read, before the search rather than after it."""
    t, found = config.trainer, processes(config)
    check_gpus(config, found)
    preflight.check_precision(t, bare_trainer(config).strategy.root_device)
    least = t.accumulate if isinstance(t.accumulate, int) else 1
    device_batch_size(config.recipe.batch_size, found.world_size, least)
    data = ImageDataModule(config.data, config.recipe)
    try:
        data.setup("fit")
    except (AssertionError, KeyError) as error:  # timm's ways to refuse an augmentation
        name = config.recipe.auto_augment
        raise ConfigError(f"recipe.auto_augment={name} is no augmentation that timm knows ({error})") from None
    data.train_set[SampleIndex(0, 0, 0)], data.val_set[SampleIndex(0, 0, 0)]
