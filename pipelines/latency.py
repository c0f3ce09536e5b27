"""Latency: a table of the latencies of a size's layers in a runtime, from which any network's is predicted.

Some layers of each kind are measured, by themselves or in a row, and some whole networks: 16 to calibrate, others to
tell how well networks are predicted that the table knows nothing of. A search keeps to it with
`budget.latency=TABLE:20ms`. Killed, the same command goes on.

On another machine: --emit FOLDER writes every network as a file of the runtime, the table, and measure.sh, which
measures them with the runtime's own tool and needs neither Python nor this package; --read FOLDER then fills
FOLDER/table.csv from what the tool printed. It may be filled by hand as well.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from esformer.choices import SIZES
from pipelines.runtime import cli
from pipelines.runtime.completion import complete

KINDS = ("onnxruntime", "openvino", "litert", "torch")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=SIZES, default=SIZES[0], help=f"of the networks: {', '.join(SIZES)} (default {SIZES[0]})")
    add("--extended", action="store_true", help="with the residual bottleneck of Table 5")
    add("--runtime", choices=KINDS, default=KINDS[0], help=f"{', '.join(KINDS)} (default {KINDS[0]})")
    add("--device", metavar="NAME", help="of torch: cpu, cuda, ... (default cpu); with --emit: what to call the device")
    add("--threads", type=_count, default=1, metavar="N", help="of the CPU (default 1)")
    add("--img-size", type=_count, default=224, metavar="PIXELS", help="height and width of the image (default 224)")
    add("--num-classes", type=_count, default=1000, metavar="N", help="of the classifier (default 1000)")
    add("--networks", type=_count, default=50, metavar="N", help="whole networks to judge the table by (default 50)")
    add("--out", type=cli.path, metavar="FILE", help="the table (default latency-SIZE-RUNTIME.csv)")
    add("--emit", type=cli.path, metavar="FOLDER", help="write the files, the table and measure.sh; measure nothing")
    add("--read", type=cli.path, metavar="FOLDER", help="fill the table of this folder from what measure.sh left there")
    complete(parser)
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a whole number from 1 to 100,000")
    return int(text)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what the table lacks, or has it measured elsewhere; tells how well networks are predicted."""
    options = parse(argv)
    from pipelines.runtime.console import show
    from pipelines.runtime.logs import start_logging
    from pipelines.runtime.tabulating import emit_files, measure_table, read_outputs

    start_logging()
    work = read_outputs if options.read else emit_files if options.emit else measure_table
    summary = work(options)
    show(summary)
    return summary


if __name__ == "__main__":
    cli.run(main)
