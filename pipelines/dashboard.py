"""Dashboard: a project of Weights & Biases, arranged: networks against cost, searches, trainings, columns of facts.

Makes the workspace `ESFormer` of the project and a report of that title, or brings them up to date; what people have
arranged under other names stays as it is. Prints their addresses.
"""

import argparse
from collections.abc import Sequence

from pipelines.runtime import cli
from pipelines.runtime.completion import complete


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--project", default="esformer", help="where the runs are, their wandb.project (default esformer)"
    )
    parser.add_argument("--entity", help="the user or team that it belongs to (default whoever is logged in)")
    parser.add_argument("--show", action="store_true", help="print both as JSON, and send nothing")
    complete(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> str:
    """Makes workspace and report or updates them; returns the addresses, or what they would be."""
    options = parse(argv)
    from pipelines.runtime.workspace import described, save

    said = described(options.project) if options.show else "\n".join(save(options.project, options.entity))
    print(said)
    return said


if __name__ == "__main__":
    cli.run(main, goes_on=False)
