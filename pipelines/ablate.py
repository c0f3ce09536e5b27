"""Ablate: what searches find that differ only in what guides them (Table 5), or beside no search at all.

Every method of ablate.methods searches once for each seed. What was found is scored anew, with draws that no search
saw, and with ablate.train=true trained. The table gives mean and standard deviation over the seeds.

Where nothing else is said, it starts from: --size S1 search=evaluations search.extended=true budget.macs=null (Table 5,
whose one limit is 6 million parameters). Killed, the same command goes on; with other methods, more seeds or
ablate.train=true in the same folder only what is missing is done. The table holds what the last command asked for.
Leaves ablate.csv, ablate.png, and a folder for each search and training: search/METHOD-SEED, training/METHOD-SEED.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from configs.schema import Config
from pipelines.runtime import cli

DEFAULTS = ["--size", "S1", "search.extended=true", "budget.macs=null"]
"""Table 5's, where nothing else is said; without `--quick` its searches are counted in evaluations too."""


def parse(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """What a command line asks for."""
    unit = [] if "--quick" in argv else ["search=evaluations"]
    return cli.parse_with(__doc__ or "", [*DEFAULTS, *unit, *argv], {})


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Search with every method and seed, compare what was found, and train it if asked to."""
    argv = sys.argv[1:] if argv is None else list(argv)
    config, arguments = parse(argv)
    from pipelines.runtime.ablating import ablate

    return ablate(config, arguments, argv)


if __name__ == "__main__":
    cli.run(main)
