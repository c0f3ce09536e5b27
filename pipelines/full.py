"""Full: from a size and images to a searched, trained and evaluated ESFormer.

Searches a genotype within the size's budget, trains its network with the paper's recipe and evaluates it. Killed at
any moment, the same command goes on where it was.
"""

from collections.abc import Sequence
from typing import Any

from pipelines import cli


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The whole main job."""
    config, flags = cli.parse_with(__doc__, argv, cli.DRY_RUN)
    if flags.dry_run:
        from pipelines.rehearsal import rehearse

        return rehearse("full", config, argv)
    from pipelines.launch import prepare
    from pipelines.search import search, search_summary
    from pipelines.train import train

    with prepare("full", config, argv) as (run, loggers):
        if summary := run.finished():
            return summary
        genotype = search(config, run, loggers)
        found = search_summary(config, run, genotype)
        metrics = train(config, run, genotype, loggers, provenance={"command": run.command, **found})
        return run.finish({**found, **metrics, "commands": [run.command]})


if __name__ == "__main__":
    cli.run(main)
