"""Ablate: what searches find that differ only in what guides them (Table 5), or beside no search at all.

Every method of ablate.methods searches once for each seed. What was found is scored anew, with draws that no search
saw, and with ablate.train=true trained. The table gives mean and standard deviation over the seeds.

Where nothing else is said, it starts from: --size S1 search=evaluations search.extended=true budget.macs=null (Table 5,
whose one limit is 6 million parameters). Killed, the same command goes on; with other methods, more seeds or
ablate.train=true in the same folder only what is missing is done. The table holds what the last command asked for.
Leaves ablate.csv, ablate.png, and a folder for each search and training: search/METHOD-SEED, training/METHOD-SEED.

With --space and --table it searches a table of trained networks instead, from search=quick on, and compares the
accuracies of what is found: every method is a guide (accuracy is what the table says), alone or with a variant of the
algorithm behind an @: random (the best of as many random ones), rea (plain evolution: one gene a mutation, no
crossover), one-phase, one-start, one-gene, no-crossover; or decoupled, guided by search.topology_proxy and size_proxy.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from configs.schema import Config
from pipelines.runtime import cli

DEFAULTS = ["--size", "S1", "search.extended=true", "budget.macs=null"]
"""Table 5's, where nothing else is said; without `--quick` its searches are counted in evaluations too."""
OF_SPACE = ["search=quick", "search.start_proxy=macs", "search.joint_proxy=macs", "ablate.seeds=20"]
OF_SPACE += ["ablate.methods=[accuracy,accuracy@rea,accuracy@random,sed,naswot,log_synflow]"]
"""Those of a table, whose genes are of one group; every method brings a guide of its own."""


def parse(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """What a command line asks for."""
    if any(word.startswith(("--space", "space.name=")) for word in argv):
        return cli.parse_with(__doc__ or "", [*OF_SPACE, *argv], cli.SPACE, cli.of_space)
    unit = [] if "--quick" in argv else ["search=evaluations"]
    return cli.parse_with(__doc__ or "", [*DEFAULTS, *unit, *argv], cli.SPACE, cli.of_space)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Search with every method and seed, compare what was found, and train it if asked to."""
    argv = sys.argv[1:] if argv is None else list(argv)
    config, arguments = parse(argv)
    from pipelines.runtime.ablating import ablate
    from pipelines.runtime.ablating_space import ablate_space

    return (ablate if config.space.name is None else ablate_space)(config, arguments, argv)


if __name__ == "__main__":
    cli.run(main)
