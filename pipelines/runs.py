"""Runs: which runs there are in a folder, how far each is, what it reached, and what to type to go on.

A run is a folder that pipelines.search, train or full has made, wherever it lies below the given ones; of other
commands' folders it says only whether a process is at work there. The one that changed last comes first.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esformer.files import check_folder
from pipelines.runtime import cli
from pipelines.runtime.completion import complete


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [Path("runs")]
    help = "where runs are looked for (default runs, where they are without run.dir)"
    parser.add_argument("folders", type=cli.path, nargs="*", default=default, metavar="FOLDER", help=help)
    complete(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Prints a table of the runs, and returns it."""
    options = parse(argv)
    for folder in options.folders:
        check_folder(folder, "a folder with runs")
    from pipelines.runtime.listing import list_runs

    return list_runs(options.folders)


if __name__ == "__main__":
    cli.run(main, goes_on=False)
