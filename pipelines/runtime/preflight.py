"""Preflight: what a run is gets decided once, and refused here if it cannot be, before its time is spent."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.schema import AUTO, Config, ConfigError
from esformer.data.base import DataError
from esformer.data.datamodule import ImageDataModule, SampleIndex, device_batch_size
from esformer.data.datasets import DataConfig, resolve
from pipelines.runtime.build import bare_trainer, search_fabric, search_stage
from pipelines.runtime.logs import start_logging
from pipelines.runtime.memory import check_precision
from pipelines.runtime.plan import Plan
from pipelines.runtime.processes import Processes, check_gpus, processes, with_workers
from pipelines.runtime.run_folder import RunFolder
from pipelines.runtime.trainings import visible_gpus


def preflight(pipeline: str, config: Config, argv: Sequence[str] | None = None, folder: Path | None = None) -> Plan:
    """The plan of a run; no folder is claimed, and the configuration stays as it is.

    Args:
        pipeline: the command's name: full, search, train, survey, ablate or evaluate.
        config: what a person asks for.
        argv: the command's arguments, by default the process's own.
        folder: where the run lies, if the command says so itself.

    Raises:
        ESFormerError: it says what is wrong, and what would be right.
    """
    start_logging()
    found = processes(config)
    _refuse_settings(pipeline, config, found)
    config = replace(config, data=with_workers(_find_images(pipeline, config), found))
    run = RunFolder.of(pipeline, config, argv, folder)
    plan = Plan(pipeline, run.as_begun(config), found, run)
    if pipeline not in ("train", "evaluate"):
        plan = replace(plan, stage=search_stage(plan.config, search_fabric(plan)))
    return _with_training(plan) if _trains(pipeline, config) else plan


def _refuse_settings(pipeline: str, config: Config, found: Processes) -> None:
    """Refuse what is meant for another pipeline."""
    if pipeline == "survey" and found.world_size > 1 and found.starter is None:
        raise ConfigError(
            f"each training of a survey has one device, but trainer.devices and trainer.num_nodes ask for"
            f" {found.world_size}; leave them out, and give --workers, or start it with srun or torchrun"
        )
    if config.space.name is not None:
        if pipeline not in ("search", "ablate"):
            raise ConfigError(
                f"space.name={config.space.name} is a setting of pipelines.search and pipelines.ablate alone"
            )
        if config.budget.macs == AUTO:
            raise ConfigError("budget.macs=auto is that of a size; give networks of another space a number, or null")
        if config.ablate.train:
            raise ConfigError("ablate.train trains ESFormers; the networks of a table are trained already")
        if config.search.finalists:
            raise ConfigError("search.finalists trains ESFormers, and a search of another space finds none")
    for name in ("genotype", "init"):
        if getattr(config, name) is not None and pipeline not in ("train", "evaluate"):
            raise ConfigError(f"{name} is a setting of pipelines.train; a search finds its own genotype")


def _trains(pipeline: str, config: Config) -> bool:
    """Whether a pipeline trains networks: a search does if it has finalists."""
    asked = {"search": config.search.finalists > 0, "ablate": config.ablate.train, "evaluate": False}
    return asked.get(pipeline, True)


def _find_images(pipeline: str, config: Config) -> DataConfig:
    """The images, which must be there; a search alone looks at none."""
    if pipeline == "evaluate":
        return resolve(config.data, train=False)
    if not _trains(pipeline, config) and config.data.num_classes is not None:
        return config.data
    try:
        return resolve(config.data)
    except DataError as error:
        if pipeline == "search" and config.search.finalists:
            raise ConfigError(f"search.finalists={config.search.finalists} trains on images, but {error}") from None
        raise


def _with_training(plan: Plan) -> Plan:
    """Refuse a machine that is not there, and images that cannot be read, before the search rather than after it."""
    config, found = plan.config, plan.processes
    r, t = config.recipe, config.trainer
    check_gpus(config, found)
    device = bare_trainer(plan).strategy.root_device
    check_precision(t, device)
    together = 1 if plan.pipeline == "survey" else found.world_size
    device_batch_size(r.batch_size, together, t.accumulate if isinstance(t.accumulate, int) else 1)
    images = ImageDataModule(config.data, r, config.seed)
    try:
        images.setup("fit")
    except (AssertionError, KeyError) as error:  # timm's ways to refuse an augmentation
        raise ConfigError(
            f"recipe.auto_augment={r.auto_augment} is no augmentation that timm knows ({error})"
        ) from None
    images.train_set[SampleIndex(0, 0, 0)], images.val_set[SampleIndex(0, 0, 0)]
    return replace(plan, device=device, images=images, gpus=tuple(visible_gpus(config)))
