"""Train: train the network of a genotype with the recipe of Table 2, and evaluate its raw and averaged weights."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.runtime import cli

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
    from pipelines.runtime.dry_run import dry_run
    from pipelines.runtime.preflight import preflight
    from pipelines.runtime.start import load_initial_checkpoint
    from pipelines.runtime.training import train_alone
    from pipelines.timing.throughput import speed

    genotype, start = load_initial_checkpoint(config, argv)
    if flags.speed is not None:
        return speed(config, genotype, flags.speed)
    plan = preflight("train", config, argv)
    if flags.dry_run:
        return dry_run(plan, genotype, start)
    return train_alone(plan, genotype, start)


if __name__ == "__main__":
    cli.run(main)
