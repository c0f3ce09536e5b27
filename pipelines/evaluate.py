"""Evaluate: what the network of a checkpoint makes of validation images, and how fast it is on this device.

The checkpoint is anything that esformer.load opens, or a file that pipelines.export wrote (.onnx, .xml, .tflite, .pte),
run by its own runtime on the CPU. What it knows is the default: on which images it was trained, how they are prepared,
its image size. So `python -m pipelines.evaluate last.ckpt data.root=/my/images` is enough for a
folder of images with a folder a class under val; no training images are needed. Every image counts once, on any number
of devices. Prints a table and leaves evaluation.json, classes.csv, confusion.png, and
mistakes.png with the images that it is most wrong about. `--speed` leaves speed.csv alone.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.runtime import cli

FLAGS: dict[str, dict[str, Any]] = {
    "checkpoint": dict(
        type=cli.path_or_name,
        metavar="CHECKPOINT",
        help="a file or folder of weights, an exported file, or a name such as timm:efficientformerv2_s0",
    ),
    "--raw": dict(action="store_true", help="the weights as the last step left them, not their average"),
    "--out": dict(
        metavar="FOLDER", type=cli.path, help="where the results go; by default beside the checkpoint, named after it"
    ),
    "--batch-size": dict(
        metavar="IMAGES", type=int, default=128, help="images that a device takes at a time (default 128)"
    ),
    "--speed": dict(
        action="store_true",
        help="only time it on the CPU, with 1, 2 and 4 threads, and the exported files beside it by turns; no images",
    ),
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Checks, evaluates, times, writes and prints. Rank 0 returns what evaluation.json holds, others what they know."""
    config, flags = cli.parse_with(__doc__, argv, FLAGS, _defaults)
    if flags.speed:
        from pipelines.timing.exports import run
    else:
        from pipelines.runtime.evaluating import run
    return run(config, flags, argv)


def _defaults(arguments: argparse.Namespace) -> list[str]:
    """The settings that the checkpoint brings with it."""
    from pipelines.runtime.evaluating import checkpoint_defaults

    return checkpoint_defaults(arguments)


if __name__ == "__main__":
    cli.run(main, goes_on=False)
