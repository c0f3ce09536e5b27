"""Survey: train many networks with one recipe, and keep what each reaches in a table.

Draws genotypes that answer what is better at equal cost (or takes those that --genotypes names), trains each on the
data and with the recipe of the configuration, and adds a line to trainings.csv as soon as one is done. Killed, the same
command goes on, in the middle of a training too; with more --networks or --workers it adds to the same folder.
The table is read by `python -m pipelines.correlate --benchmark esformer --table DIR/trainings.csv`.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

from configs.schema import ConfigError
from pipelines.runtime import cli

FLAGS: dict[str, dict[str, Any]] = {
    "--networks": dict(metavar="N", type=int, default=100, help="genotypes to draw (default 100)"),
    "--genotypes": dict(
        metavar="A,B,...",
        help="train these instead, each with every seed: genotype files, or names of shipped ones",
    ),
    "--seeds": dict(metavar="N", type=int, default=3, help="trainings of a genotype that is repeated (default 3)"),
    "--known": dict(
        metavar="TABLE",
        type=cli.path,
        help="begin with the lines of this table of the same protocol, such as the shipped one; adds to them",
    ),
    "--workers": dict(
        metavar="N",
        type=int,
        default=1,
        help="trainings at a time, of each process of srun or torchrun; GPUs are dealt out (default 1)",
    ),
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """A table of trained networks."""
    config, arguments = cli.parse_with(__doc__, argv, FLAGS)
    for name in ("networks", "seeds", "workers"):
        if not 1 <= getattr(arguments, name) <= 100_000:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}; it must be from 1 to 100,000")
    from pipelines.runtime.console import show
    from pipelines.runtime.logs import is_main
    from pipelines.runtime.preflight import preflight
    from pipelines.runtime.surveying import survey

    plan = preflight("survey", config, argv)
    with plan.run.open(plan.config) as run:
        trainings = survey(plan, arguments)
        finals = sorted(training.top1[-1] for training in trainings)
        summary = {
            "trainings": len(trainings),
            "genotypes": len({training.genotype for training in trainings}),
            "top1_lowest": finals[0],
            "top1_median": median(finals),
            "top1_highest": finals[-1],
            "table": str(run.path / "trainings.csv"),
        }
        if is_main():
            show(summary)
        return summary


if __name__ == "__main__":
    cli.run(main)
