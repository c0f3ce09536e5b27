"""Train: train the network of a genotype with the recipe of Table 2, and evaluate its raw and averaged weights."""

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from pipelines.runtime import cli

log = logging.getLogger("esformer")

FLAGS: dict[str, dict[str, Any]] = {
    "--from": dict(
        metavar="CHECKPOINT",
        dest="init",
        help="fine-tune: start from its weights, with its genotype and the recipe for it (recipe=finetune)",
    ),
    "--speed": dict(
        metavar="STEPS",
        type=int,
        nargs="?",
        const=20,
        help="measure images a second of so many steps of this training, beside timm's own train.py",
    ),
    **cli.DRY_RUN,
}


def _start_of(arguments: argparse.Namespace) -> list[str]:
    """The setting that `--from` stands for."""
    return [] if arguments.init is None else [f"init={arguments.init}"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Training alone: any genotype file goes in."""
    config, flags = cli.parse_with(__doc__, argv, FLAGS, _start_of)
    from pipelines.runtime.start import descent, load_initial_checkpoint

    genotype, start = load_initial_checkpoint(config, argv)
    if flags.speed is not None:
        from pipelines.timing.throughput import speed

        return speed(config, genotype, flags.speed)
    if flags.dry_run:
        from pipelines.runtime.dry_run import dry_run

        return dry_run("train", config, argv, genotype, start)
    from configs.budget import price_of
    from esformer.genotype import Genotype
    from pipelines.runtime.build import prepare
    from pipelines.runtime.run_folder import RunError, is_main
    from pipelines.runtime.training import train

    with prepare("train", config, argv, genotype) as (run, loggers):
        if summary := run.finished():
            return summary
        if run.genotype.exists() and Genotype.load(run.genotype) != genotype:
            raise RunError(f"{run.path} trains another genotype; choose another run.dir")
        if is_main():
            named = config.genotype or config.init or "the shipped one"
            genotype.save(run.genotype, comment=f"given as {named}")
        price = price_of(config, genotype)
        if genotype.space.partition("-")[0] != config.size:
            log.info("the genotype is of space %s, the recipe that of size %s", genotype.space, config.size)
        about = {"size": genotype.space, "genotype": str(run.genotype), "params": price.params, "macs": price.macs}
        provenance = {"command": run.command, **descent(start)}
        metrics = train(config, run, genotype, loggers, provenance, start)
        return run.finish({**about, **metrics, "commands": [run.command]})


if __name__ == "__main__":
    cli.run(main)
