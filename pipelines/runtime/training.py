"""The training stage: a network is trained with a recipe, such as Table 2, or its training goes on."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import Logger

from callbacks.checkpoints import Checkpoints
from callbacks.speed import Speed
from configs.schema import Config
from esformer.benchmarks.trained import AnyArchitecture, price, read_architecture
from esformer.checkpoint import Checkpoint, CheckpointError, read
from esformer.checkpoint.training_state import StateError, TrainingState, check_training_state
from esformer.data.datamodule import device_batch_size
from esformer.errors import out_of_memory
from esformer.files import FileError
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule, TrainingError, optimizer_of
from pipelines.runtime import lineage, tracking
from pipelines.runtime.build import accumulation, network, prepare, trainer
from pipelines.runtime.errors import explain
from pipelines.runtime.logs import is_main
from pipelines.runtime.memory import ran_out
from pipelines.runtime.plan import Plan
from pipelines.runtime.run_folder import RunError
from pipelines.runtime.signals import stop
from pipelines.runtime.start import descent

log = logging.getLogger("esformer")


def train_alone(plan: Plan, genotype: AnyArchitecture, start: Checkpoint | None = None) -> dict[str, Any]:
    """A run that is a training and nothing else, from its folder to its summary.

    Args:
        plan: of the run.
        genotype: what is trained; any.
        start: whose weights a training that begins takes; None begins with random ones.

    Raises:
        RunError: the folder is of another genotype.
    """
    config, run = plan.config, plan.run
    with prepare(plan, genotype) as loggers:
        if summary := run.finished():
            return summary
        if run.genotype.exists() and read_architecture(run.genotype) != genotype:
            raise RunError(f"{run.path} trains another genotype; choose another run.dir")
        if not run.last.exists():  # what goes on began from what W&B was told of then
            lineage.use_artifact(loggers, config.init or config.genotype)
        if is_main():
            named = config.genotype or config.init or "the shipped one"
            genotype.save(run.genotype, comment=f"given as {named}")
        if isinstance(genotype, Genotype) and genotype.space.partition("-")[0] != config.size:
            log.info("the genotype is of space %s, the recipe that of size %s", genotype.space, config.size)
        costs = asdict(price(genotype, config.data.img_size, config.data.known_classes))
        tracking.log_genotype(loggers, genotype, **costs)
        about = {"size": genotype.space, "genotype": str(run.genotype), **costs}
        metrics = train(plan, genotype, loggers, {"command": run.command, **descent(start)}, start)
        return run.finish({**about, **metrics, "commands": [run.command]})


def train(
    plan: Plan,
    genotype: AnyArchitecture,
    loggers: list[Logger],
    provenance: dict[str, Any],
    start: Checkpoint | None = None,
) -> dict[str, Any]:
    """The training stage: trains, or goes on training, and returns what the final weights reach on all images once.

    Args:
        plan: of the run, in whose folder checkpoints may be already.
        genotype: what is trained.
        loggers: told of everything.
        provenance: what travels with the weights.
        start: whose weights a training that begins takes; None begins with random ones.
    """
    config, run, data = plan.config, plan.run, plan.images
    assert data is not None
    data.accumulate = accumulate = accumulation(plan, genotype)
    seed_everything(config.seed, verbose=False)
    fit = trainer(plan, loggers, accumulate)
    resume = _resume_from(plan, genotype, fit)
    if start is not None and resume is None:
        _say_start(start, config)
    module = network(config, genotype, provenance, None if resume else start)
    say = LambdaCallback(on_fit_start=lambda fit, module: _say_settings(config, fit, module))
    fit.callbacks.append(say)  # type: ignore[attr-defined]
    try:
        with stop.deferred():  # Checkpoints sees to signals
            fit.fit(module, data, ckpt_path=resume, weights_only=True)
        metrics = fit.validate(module, data, verbose=False)[0]
    except Exception as error:
        raise _explained(error, plan, fit) from None
    except SystemExit as error:
        if error.code == 1 and fit.interrupted:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        raise
    if config.wandb.checkpoints:
        lineage.send_checkpoints(loggers, {"best": run.best, "last": run.last})
    return {
        "top1": metrics["val/top1"],
        "top5": metrics["val/top5"],
        "ema_top1": metrics.get("val/ema_top1"),
        "ema_top5": metrics.get("val/ema_top5"),
        "checkpoint": str(run.last),
        **_waited(fit),
    }


def _waited(fit: Trainer) -> dict[str, float]:
    """The share of this session's time that waited for images, if that was measured."""
    speed = next(callback for callback in fit.callbacks if isinstance(callback, Speed))  # type: ignore[attr-defined]
    return {} if speed.waited is None else {"waiting_for_images": round(speed.waited, 4)}


def _explained(error: Exception, plan: Plan, fit: Trainer) -> BaseException:
    """Where a training that cannot go on can be taken up; what is said of lost processes, in words for people."""
    run = plan.run
    if isinstance(error, OSError | FileError):
        run.check_place()
    if out_of_memory(error):
        return ran_out(plan.config.recipe.batch_size, fit.world_size, fit.accumulate_grad_batches)
    if isinstance(error, TrainingError):
        good = f"the last good checkpoint is {run.last}" if run.last.exists() else "there is no checkpoint yet"
        return TrainingError(f"{error}; {good}")
    return explain(error)


def _say_start(start: Checkpoint, config: Config) -> None:
    """From where, and whether images are prepared otherwise than they were there."""
    log.info("starting from %s", start.path)
    for word in ("mean", "std"):
        ours = list(getattr(config.data, word))
        theirs = list(start.data.get(word, ours))
        if theirs != ours:
            log.warning("data.%s is %s here and was %s in the training of %s", word, ours, theirs, start.path)


def _say_settings(config: Config, fit: Trainer, module: ESFormerModule) -> None:
    """The settings as they take effect on these devices."""
    r, accumulate = config.recipe, fit.accumulate_grad_batches
    each = device_batch_size(r.batch_size, fit.world_size, accumulate)
    frozen = f", the stem and {r.freeze} of 4 stages frozen" if r.freeze else ""
    layers = f" (x {r.layer_decay} with each block away from the classifier)" if r.layer_decay < 1 else ""
    lines = {
        "network": f"{sum(p.numel() for p in module.model.parameters()):,} parameters{frozen}, {config.data.img_size}"
        f" pixels, {config.data.num_classes} classes, drop path 0 to {r.drop_path} with the {r.drop_path_schedule}"
        + (f", an auxiliary classifier of weight {r.auxiliary}" if r.auxiliary else ""),
        "batch": f"{r.batch_size} = {fit.world_size} {fit.strategy.root_device.type} devices x {each}"
        f" x {accumulate} accumulated, {fit.precision}, {config.data.loaders} processes load images",
        "optimiser": f"{f'SGD with momentum {r.momentum}' if r.optimizer == 'sgd' else 'AdamW'}, learning rate"
        f" {r.warmup_lr} to {r.lr} in {r.warmup_epochs} epochs, {_schedule(r)}{layers}, weight decay {r.weight_decay},"
        f" clipping {r.clip_mode} {r.clip_grad}",
        "augmentation": f"{r.auto_augment or 'no RandAugment'}, erasing {r.random_erasing}, {_mixing(r)}"
        + "".join(f", {name} {value}" for name, value in _other_augmentation(r).items()),
        "loss": f"{'binary ' if r.loss == 'bce' else ''}cross-entropy, smoothing {r.smoothing}; weights averaged with"
        f" {r.ema_decay if r.ema else 'nothing'}",
    }
    for name, line in lines.items():
        log.info("%s: %s", name, line)


def _mixing(recipe: Recipe) -> str:
    """Whether images are mixed, and how."""
    if not recipe.mixup_prob or not (recipe.mixup or recipe.cutmix):
        return "no Mixup or CutMix"
    return (
        f"Mixup {recipe.mixup} / CutMix {recipe.cutmix} in {recipe.mixup_prob:.0%} of the groups,"
        f" {recipe.mixup_switch_prob:.0%} of them CutMix"
    )


def _schedule(recipe: Recipe) -> str:
    if recipe.schedule == "exponential":
        return f"times {recipe.lr_decay} after each of {recipe.epochs} epochs, {recipe.min_lr} at least"
    return f"cosine to {recipe.min_lr} in epoch {recipe.epochs}"


def _other_augmentation(recipe: Recipe) -> dict[str, Any]:
    """What Table 2 has not, where it is on."""
    found = {name: getattr(recipe, name) for name in ("crop_padding", "color_jitter", "cutout")}
    return {name.replace("_", " "): value for name, value in found.items() if value}


def _resume_from(plan: Plan, genotype: AnyArchitecture, fit: Trainer) -> Path | None:
    """The last whole checkpoint of the run, if there is one; it must be of this genotype, and of this training.

    Raises:
        CheckpointError: there are checkpoints, and from none of them the training can go on.
    """
    run = plan.run
    there = [path for path in (run.last, run.previous) if path.exists()]
    like = _fresh_state(genotype, plan.config, fit) if there else None
    for path in there:
        try:
            checkpoint = read(path)
            if checkpoint["hyper_parameters"]["genotype"] != genotype.to_dict():
                raise RunError(f"{path} is of another genotype than {run.genotype}; train it with another run.dir")
            assert like is not None
            check_training_state(checkpoint, like)
        except (CheckpointError, StateError) as error:
            why = f"{path}: {error}" if isinstance(error, StateError) else str(error)
            if path == there[-1]:
                raise CheckpointError(
                    f"{why}; there is no whole checkpoint before it: remove {path.parent} to train from the beginning"
                ) from None
            log.warning("%s; going on from %s", why, there[-1])
            continue
        return path
    return None


def _fresh_state(genotype: AnyArchitecture, config: Config, fit: Trainer) -> TrainingState:
    """What a checkpoint of this training must fit; nothing of it takes memory, or draws random numbers."""
    assert config.data.num_classes is not None
    classes, img_size = config.data.num_classes, config.data.img_size
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = ESFormerModule(genotype, config.recipe, classes, img_size).model
    return TrainingState(
        network=network,
        optimizer=optimizer_of(network, config.recipe),
        loops=fit.fit_loop.state_dict(),
        callbacks={one.state_key: one.state_dict() for one in fit.checkpoint_callbacks if isinstance(one, Checkpoints)},
        settings={"num_classes": classes, "img_size": img_size},
        ema=config.recipe.ema,
        max_skipped=config.trainer.max_skipped,
        epochs=config.recipe.epochs,
    )
