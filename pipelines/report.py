"""Report: one HTML file that shows a run, or several side by side, with charts that answer to the pointer.

A run is the folder of pipelines.search, train or full, finished, at work or killed. Its report is report.html in the
folder, which the run writes by itself while it is at work and at its end; several runs are compared in a file of their
own. The file needs no network and no other file: send it to whom you like.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from esformer.files import check_folder
from pipelines.runtime import cli
from pipelines.runtime.completion import complete


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=cli.path, nargs="+", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--output",
        type=cli.path,
        metavar="FILE",
        help="what to write (default report.html: in the run's folder; of several runs, here)",
    )
    complete(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Reads the folders and writes the file; returns where it is."""
    options = parse(argv)
    runs = list(dict.fromkeys(options.runs))
    for run in runs:
        check_folder(run, "the folder of a run")
    from pipelines.runtime.reporting import NAME, write

    output = options.output or (runs[0] / NAME if len(runs) == 1 else Path(NAME))
    write(runs, output)
    print(output)
    return output


if __name__ == "__main__":
    cli.run(main, goes_on=False)
