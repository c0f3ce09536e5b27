"""Train: train the network of a genotype with the recipe of Table 2, and evaluate its raw and averaged weights."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import cli
from pipelines.config import Config

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

    from esformer.genotype import Genotype
    from pipelines.run import RunFolder

log = logging.getLogger("esformer")


def train(
    config: Config, run: "RunFolder", genotype: "Genotype", loggers: "list[WandbLogger]", provenance: dict[str, Any]
) -> dict[str, Any]:
    """The training stage: trains, or goes on training, and returns what the final weights reach on all images once."""
    from lightning import seed_everything

    from esformer.training.data import ImageDataModule
    from esformer.training.module import ESFormerModule
    from pipelines.launch import trainer

    seed_everything(config.seed, verbose=False)
    data = ImageDataModule(config.data, config.recipe, config.seed, config.trainer.accumulate)
    assert config.data.num_classes is not None
    module = ESFormerModule(genotype, config.recipe, config.data.num_classes, config.data.img_size, provenance)
    fit = trainer(config, run, loggers)
    log.info(
        "training: %d epochs on %s, %d images a step", config.recipe.epochs, config.data.name, config.recipe.batch_size
    )
    try:
        fit.fit(module, data, ckpt_path=_resume_from(run, genotype), weights_only=True)
    except SystemExit:
        if fit.interrupted:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        raise
    metrics = fit.validate(module, data, verbose=False)[0]
    return {
        "top1": metrics["val/top1"],
        "top5": metrics["val/top5"],
        "ema_top1": metrics.get("val_ema/top1"),
        "ema_top5": metrics.get("val_ema/top5"),
        "checkpoint": str(run.last),
    }


def _resume_from(run: "RunFolder", genotype: "Genotype") -> Path | None:
    """The last checkpoint of the run, if there is one; it must be whole and of this genotype."""
    from esformer.checkpoint import read
    from pipelines.run import RunError

    if not run.last.exists():
        return None
    if read(run.last)["hyper_parameters"]["genotype"] != genotype.to_dict():
        raise RunError(f"{run.last} is of another genotype than {run.genotype}; train that one with another run.dir")
    return run.last


def given_genotype(config: Config) -> "Genotype":
    """The genotype that the configuration names: a file, a shipped one, or the shipped one of its size."""
    from esformer.genotype import Genotype, shipped_names

    name = config.genotype or f"esformer_{config.size.lower()}"
    return Genotype.shipped(name) if name in shipped_names() and not Path(name).exists() else Genotype.load(name)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Training alone: any genotype file goes in."""
    config = cli.parse(__doc__, argv)
    genotype = given_genotype(config)
    from esformer.genotype import Genotype
    from esformer.model.cost import cost
    from pipelines.launch import prepare
    from pipelines.run import RunError, is_main

    with prepare("train", config, argv) as (run, loggers):
        if summary := run.finished():
            return summary
        if run.genotype.exists() and Genotype.load(run.genotype) != genotype:
            raise RunError(f"{run.path} trains another genotype; choose another run.dir")
        if is_main():
            genotype.save(run.genotype, comment=f"given as {config.genotype or 'the shipped one'}")
        price = cost(genotype, config.data.img_size, config.data.num_classes or 1000)
        if genotype.space.partition("-")[0] != config.size:
            log.info("the genotype is of space %s, the recipe that of size %s", genotype.space, config.size)
        about = {"size": genotype.space, "genotype": str(run.genotype), "params": price.params, "macs": price.macs}
        metrics = train(config, run, genotype, loggers, {"command": run.command})
        return run.finish({**about, **metrics, "commands": [run.command]})


if __name__ == "__main__":
    cli.run(main)
