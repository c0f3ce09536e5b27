"""What a run is built of by its plan: its folder and loggers, the search stage, the network, Fabric and Trainer."""

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
from lightning.pytorch.loggers import Logger
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
from configs.schema import Config, ConfigError, table_and_limit
from esformer.benchmarks.spaces import open_space
from esformer.benchmarks.trained import AnyArchitecture
from esformer.checkpoint import Checkpoint
from esformer.checkpoint.loading import install
from esformer.choices import EXTENDED
from esformer.data.sample import sample_images
from esformer.errors import STOPPED
from esformer.genotype import Genotype
from esformer.model.latency_fit import LatencyModel
from esformer.model.latency_table import LatencyTable
from esformer.search.batch import looks_at_a_batch
from esformer.search.space import ScoredSpace, Space
from esformer.search.stage import SearchStage
from esformer.space import SearchSpace
from esformer.training.module import ESFormerModule
from esformer.training.sync_batchnorm import SyncNorms
from pipelines.runtime import memory
from pipelines.runtime.loggers import finish, open_loggers
from pipelines.runtime.notify import notify
from pipelines.runtime.plan import Plan
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
def prepare(plan: Plan, genotype: AnyArchitecture | None = None) -> Iterator[list[Logger]]:
    """The run's folder, claimed until the end, and its loggers.

    Args:
        plan: of the run.
        genotype: what is trained, if that is known.

    Raises:
        ESFormerError: the folder holds another run, or no step of the training fits into memory.
    """
    with plan.run.open(plan.config) as run:
        over = run.summary.exists()
        if plan.trains and not over:  # in the folder: nobody else trains in it now
            try_memory(plan, genotype or (Genotype.load(run.genotype) if run.genotype.exists() else None))
        made = [] if over else open_loggers(plan.config, run)
        close = partial(finish, made)
        watchdog.farewells.append(close)
        code, state = 1, "failed"
        try:
            yield made
            code, state = 0, "finished"
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            state = "stopped" if code == STOPPED else "failed"
            raise
        except KeyboardInterrupt:
            state = "stopped"
            raise
        finally:
            watchdog.announce_end("failed" if code not in (0, STOPPED) else "done")  # finishing can take long
            watchdog.farewells.remove(close)
            if not over:
                notify(plan, plan.pipeline, state)
            close(code)
        disconnect()


def search_stage(config: Config, fabric: Fabric | None = None, space: Space | None = None) -> SearchStage:
    """The search that the configuration asks for, not yet run.

    Args:
        config: the configuration.
        fabric: on which it runs.
        space: what the configuration says that is searched, where it is open already.

    Raises:
        ESFormerError: it asks for what cannot be: a budget that nothing fits, an unknown proxy.
    """
    space = space or _space(config)
    return SearchStage(
        space,
        budget(config),
        config.search,
        seed=config.seed,
        img_size=config.search.img_size,
        draws=config.search.draws,
        cost_img_size=config.data.img_size,
        num_classes=config.data.known_classes,
        workers=config.search.workers,
        batch_size=config.search.batch_size,
        latency=latency_model(config, space.name),
        fabric=fabric,
        **_batch(config, space),
    )


def latency_model(config: Config, space: str) -> LatencyModel | None:
    """What predicts the latencies of a search; None where `budget.latency` names no table.

    Args:
        config: the configuration.
        space: the name of what is searched.

    Raises:
        ESFormerError: the table cannot be read, is not filled yet, or is of other networks.
    """
    if config.budget.latency is None:
        return None
    path, _ = table_and_limit(config.budget.latency)
    table = LatencyTable.read(path)
    for what, theirs, ours in (
        ("space", table.space, (space, space + EXTENDED)),
        ("img_size", table.img_size, (config.data.img_size,)),
    ):
        if theirs not in ours:
            raise ConfigError(f"budget.latency: {path} is of {what} {theirs}, and this search of {ours[0]}")
    return LatencyModel.of(table)


def _space(config: Config) -> Space:
    """The ESFormers of a size, or another space."""
    s = config.space
    if s.name is None:
        return SearchSpace.for_size(config.size, config.search.extended)
    return open_space(s.name, s.table, s.dataset)


def _batch(config: Config, space: Space) -> dict[str, Any]:
    """The images and labels of `search.batch=data`, where a proxy of the schedule looks at any; otherwise nothing."""
    s, img_size, known = config.search, config.search.img_size, tuple[str]()
    if isinstance(space, ScoredSpace):
        img_size, known = space.img_size, tuple(space.scores)
    if s.batch != "data" or not looks_at_a_batch({*s.proxies()}.difference(known)):
        return {}
    images, labels = sample_images(config.data, s.batch_size, img_size, config.seed)
    return {"images": images, "labels": labels}


def search_fabric(plan: Plan, callbacks: Sequence[Any] = (), loggers: Sequence[Logger] = ()) -> Fabric:
    """The Fabric on which all processes search that torchrun or SLURM started, or this one alone; not yet launched.

    They stay connected, and train together over the same connections. To disconnect and meet again at the same port is
    a race: one that is quick finds the other's old meeting point, which closes on it.

    Raises:
        ConfigError: there is no such accelerator.
    """
    name = plan.config.search.accelerator
    try:
        return Fabric(accelerator=name, callbacks=[*callbacks], loggers=[*loggers], **_search_machine(plan))
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise ConfigError(f"search.accelerator is {name}, and there is none to search on: {error}") from None


def _search_machine(plan: Plan) -> dict[str, Any]:
    """What Fabric is to be told of processes and devices."""
    found, environment = plan.processes, LightningEnvironment()
    if found.starter is None:  # one that searches alone, on its own device if Lightning started it to train
        on_gpu = plan.config.search.accelerator != "cpu" and torch.cuda.is_available()
        return {"devices": [environment.local_rank()] if on_gpu else 1, "plugins": [environment]}
    several = {"strategy": FabricDDP(process_group_backend=_backend(plan.config))} if found.world_size > 1 else {}
    return found.settings() | several


def network(
    config: Config,
    genotype: AnyArchitecture,
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


def accumulation(plan: Plan, genotype: AnyArchitecture, margin: float = 1.0) -> int:
    """Batches that make a step which fits into the memory of this process's device; `memory` says how it is found.

    Args:
        plan: of the run, which trains.
        genotype: what is trained.
        margin: so many times the images of the step must fit.

    Raises:
        NoMemoryError: the number that the configuration asks for does not fit; it says what would.
    """
    assert plan.device is not None
    found = plan.processes
    return memory.accumulation(plan.config, genotype, plan.device, found.world_size, found.devices, margin)


def try_memory(plan: Plan, genotype: AnyArchitecture | None) -> int:
    """The same before a search, when the genotype need not be known yet."""
    if genotype is not None:
        return accumulation(plan, genotype)
    return accumulation(plan, Genotype.shipped(f"esformer_{plan.config.size.lower()}"), memory.UNFOUND)


def trainer(plan: Plan, loggers: list[Logger], accumulate: int) -> Trainer:
    """The Trainer with everything that a run wants: averaged weights, checkpoints, pictures, progress.

    Args:
        plan: of the run.
        loggers: told of everything.
        accumulate: batches that make a step on this rank; with `trainer.accumulate=auto` others may need more.
    """
    run, r, t = plan.run, plan.config.recipe, plan.config.trainer
    bar = sys.stdout.isatty()
    if t.threads is not None:
        torch.set_num_threads(t.threads)
    speed = Speed(r.batch_size, t.log_every)
    callbacks: list[Callback] = [
        *([EMA(r.ema_decay)] if r.ema else []),
        speed,
        History(run.path, speed, drawn=run.report),
        EpochLines(speed, every=None if bar else 60),
        *([TrainingBar(speed)] if bar else []),
        *([Accumulation(accumulate, r.batch_size, t.sync_batchnorm)] if t.accumulate == "auto" else []),
        Checkpoints(run.checkpoints, "val/ema_top1" if r.ema else "val/top1", t.save_minutes, stop.look, stop.agreed),
    ]
    made_trainer = Trainer(
        **_machine(plan),
        accumulate_grad_batches=accumulate,
        max_epochs=r.epochs,
        callbacks=callbacks,
        logger=loggers or False,
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


def bare_trainer(plan: Plan, **settings: Any) -> Trainer:
    """A Trainer on the devices of a run, which leaves nothing behind.

    Raises:
        ConfigError: there are no such devices, or they do not work together like that.
    """
    settings |= dict(logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False)
    try:
        return Trainer(**_machine(plan), **settings)
    except (MisconfigurationException, ValueError, RuntimeError, TypeError, ImportError) as error:
        raise ConfigError(f"the trainer cannot run as the settings trainer.* ask: {error}") from None


def _machine(plan: Plan) -> dict[str, Any]:
    """What the Trainer is to be told of processes, devices and arithmetic."""
    t, found = plan.config.trainer, plan.processes
    settings = found.settings()
    several = found.world_size > 1 or t.strategy != "auto"
    return settings | {
        "plugins": [
            *settings["plugins"],
            AtomicCheckpointIO(),
            *([SyncNorms(memory.on_gpus(t), plan.processes.world_size)] if t.sync_batchnorm else []),
        ],
        "accelerator": t.accelerator,
        "strategy": DDPStrategy(process_group_backend=_backend(plan.config), **DDP) if several else "auto",
        "precision": plan.precision,
        "use_distributed_sampler": False,  # ours give each rank its share
    }


def _backend(config: Config) -> str:
    """The same for the search and the training, which share their connections."""
    on_gpus = torch.cuda.is_available() and {config.search.accelerator, config.trainer.accelerator} != {"cpu"}
    return BACKENDS if on_gpus else "gloo"
