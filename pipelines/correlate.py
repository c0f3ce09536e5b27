"""Correlate: score the architectures of a benchmark without training, and compare with their trained accuracies.

Scores are kept as they come: the same command goes on after a kill, and with more proxies or a larger sample in the
same folder only what is missing is computed. Leaves scores.csv, result.json, figure.png (Figure 2) and report.md.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from pipelines.runtime import cli
from pipelines.runtime.completion import complete

TABLES = """
tables are CSV files, plain or gzipped, with these columns among others (accuracies in percent), or official files:
  nasbench101           n, adj, ops, test_acc, params: vertices, upper triangle by rows, inner operations (3, 1, p);
                        nasbench_only108.tfrecord
  nats-tss              arch, and for a dataset c10, c100 or im: c10_test200, c10_params; NATS-tss-v1_0-3ffb9-simple
  nats-sss              arch (64:64:64:64:64), and for a dataset: cifar10_test; NATS-sss-v1_0-50262-simple
  channel-bench-resnet  arch (1234123), test_acc_mean, params
  darts                 genotype, acc
  esformer              as pipelines.survey writes them; comes with this package, so --table may be left out
"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=TABLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--benchmark", required=True, help="nasbench101, nats-tss, nats-sss, channel-bench-resnet, darts or esformer")
    add("--table", type=cli.path, metavar="FILE", help="the benchmark's architectures and accuracies")
    add("--dataset", help="cifar10, cifar100 or imagenet16-120, where the benchmark has them (default its first)")
    add(
        "--proxies",
        metavar="A,B,...",
        help="what to score with (default all that need nothing that is not given); sums of ranks too, such as"
        " naswot+log_synflow or 'naswot - 0.5*meco'",
    )
    add(
        "--fit",
        type=_count,
        metavar="TERMS",
        help="fit a sum of up to so many of these proxies to one half of the sample, and judge it on the other",
    )
    add("--sample", type=_count, metavar="N", help="how many architectures, drawn by the seed (default all)")
    add("--seed", type=int, default=0, help="of the sample, the scores' random draws and the bootstrap (default 0)")
    add("--workers", type=_count, default=1, help="processes that score, each on one thread (default 1)")
    add(
        "--images",
        type=cli.path,
        metavar="DIR",
        help="one folder of images a class, for proxies that look at images; or noise",
    )
    add("--batch-size", type=_count, default=64, help="how many of these images (default 64)")
    add("--out", type=cli.path, metavar="DIR", help="where it all goes (default runs/correlate-BENCHMARK-DATASET)")
    complete(parser)
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a number from 1 on")
    return int(text)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Score what is not scored yet, then say how well the scores order the architectures."""
    options = parse(argv)
    from pipelines.runtime.correlating import run

    return run(options, shlex.join(["python", "-m", "pipelines.correlate", *(sys.argv[1:] if argv is None else argv)]))


if __name__ == "__main__":
    cli.run(main)
