"""Search: find the best genotype of a size within a budget, without training anything.

With search.finalists=9 nine of the best are trained on the images of data=..., and the best of them is what comes out.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.schema import ConfigError
from pipelines.runtime import cli


def costs(text: str) -> list[float]:
    """The type of `--points`: numbers above 0, with commas between them."""
    try:
        points = [float(one) for one in text.split(",")]
    except ValueError:
        points = []
    if not points or not all(0 < point < math.inf for point in points):
        raise argparse.ArgumentTypeError(f"{text!r} must be costs above 0, such as 2e8,3e8,4e8")
    return points


FLAGS: dict[str, dict[str, Any]] = {
    "--points": dict(
        metavar="COSTS",
        type=costs,
        default=[],
        help="with search.family: write the best genotype within each of these costs, such as 2e8,3e8; a finished"
        " search is not repeated for others",
    ),
    "--replay": dict(
        metavar="JOURNAL",
        type=cli.path,
        help="rebuild the result of a finished search from its journal alone, into run.dir",
    ),
    "--speed": dict(
        metavar="GENOTYPES",
        type=int,
        nargs="?",
        const=100,
        help="measure how fast this machine scores so many genotypes of the size, and how small inputs rank them",
    ),
    "--late": dict(metavar="JOURNAL", type=cli.path, help="with --speed: rank the last genotypes of this search too"),
    **cli.SPACE,
    **cli.DRY_RUN,
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Search alone: a genotype file comes out."""
    config, flags = cli.parse_with(__doc__, argv, FLAGS, cli.of_space)
    from esformer.search.family import references
    from pipelines.runtime.build import prepare
    from pipelines.runtime.dry_run import dry_run
    from pipelines.runtime.finalists import choose
    from pipelines.runtime.logs import is_main
    from pipelines.runtime.predicting import predicted_and_measured
    from pipelines.runtime.preflight import preflight
    from pipelines.runtime.searching import (
        check_points,
        compare,
        replay,
        search,
        search_other,
        search_summary,
        write_points,
    )
    from pipelines.timing.speed import speed

    if config.space.name is not None and (flags.speed is not None or flags.replay):
        raise ConfigError("--speed and --replay know ESFormers alone; the same command as before goes on with a space")
    if flags.speed is not None:
        return speed(config, flags.speed, flags.late)
    if flags.dry_run:
        return dry_run(preflight("search", config, argv))
    if flags.replay:
        folder = Path(config.run.dir) if config.run.dir else flags.replay.parent / "replay"
        return replay(flags.replay, folder, flags.points)
    if flags.points and config.search.family is None:
        raise ConfigError("--points are those of a family: set search.family to macs, params or latency_ms too")
    plan = preflight("search", config, argv)
    run = plan.run
    with prepare(plan) as loggers:
        check_points(plan.config, flags.points)
        summary = run.finished()
        if summary is None and plan.config.space.name is not None:
            summary = run.finish({**search_other(plan, loggers), "commands": [run.command]})
        elif summary is None:
            chosen = choose(plan, flags, loggers, search(plan, loggers))
            compare(plan, chosen.genotype)
            found = search_summary(plan, chosen.genotype) | chosen.summary
            found |= predicted_and_measured(plan, chosen.genotype)
            summary = run.finish({**found, "commands": [run.command]})
        if flags.points and is_main():
            assert plan.stage is not None
            write_points(run.journal, run.path, flags.points, references(plan.stage))
        return summary


if __name__ == "__main__":
    cli.run(main)
