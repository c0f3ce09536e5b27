"""Full: from a size and images to a searched, trained and evaluated ESFormer.

Searches a genotype within the size's budget, trains its network with the paper's recipe and evaluates it; with
search.finalists=9 nine of the search's best are trained for a while first, and the best of them goes on. Killed at any
moment, the same command goes on where it was.
"""

from collections.abc import Sequence
from typing import Any

from pipelines.runtime import cli


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The whole main job."""
    config, flags = cli.parse_with(__doc__, argv, cli.DRY_RUN)
    from pipelines.runtime.build import prepare
    from pipelines.runtime.dry_run import dry_run
    from pipelines.runtime.finalists import choose
    from pipelines.runtime.predicting import predicted_and_measured
    from pipelines.runtime.preflight import preflight
    from pipelines.runtime.searching import compare, search, search_summary
    from pipelines.runtime.start import descent
    from pipelines.runtime.training import train

    plan = preflight("full", config, argv)
    run = plan.run
    if flags.dry_run:
        return dry_run(plan)
    with prepare(plan) as loggers:
        if summary := run.finished():
            return summary
        chosen = choose(plan, flags, loggers, search(plan, loggers))
        compare(plan, chosen.genotype)
        found = search_summary(plan, chosen.genotype) | chosen.summary
        found |= predicted_and_measured(plan, chosen.genotype)
        start = chosen.start(plan)
        provenance = {"command": run.command, **found, **descent(start)}
        metrics = train(plan, chosen.genotype, loggers, provenance, start)
        return run.finish({**found, **metrics, "commands": [run.command]})


if __name__ == "__main__":
    cli.run(main)
