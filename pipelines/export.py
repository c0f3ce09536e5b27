"""Export: the network of a checkpoint as a file or folder that others open, with a model card in Markdown.

The checkpoint is anything that esformer.load opens. What is written is read back and compared with PyTorch's outputs
first, and kept only if no more than rounding differs; an older export under the same name is replaced only then.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from pipelines.runtime import cli
from pipelines.runtime.completion import complete

EPILOG = """
--to is one of
  safetensors   the weights with all that is known of them; esformer.load opens it
  onnx          a graph for onnxruntime and others; needs pip install 'esformer[export]'
  torch-export  PyTorch's own graph (torch.export), a .pt2 file; TorchScript is deprecated and not offered
  timm-folder   a folder for timm.create_model("local-dir:..."), ready for the Hugging Face hub
  openvino      a graph for OpenVINO, NAME.xml with its weights NAME.bin; needs pip install 'esformer[openvino]'
  litert        a graph for LiteRT (TensorFlow Lite), a .tflite file; needs an environment of its own,
                made in the folder of this repository:
                python -m venv litert && litert/bin/pip install -e . &&
                litert/bin/pip install 'litert-torch>=0.10,<0.11'
  executorch    a program for ExecuTorch with XNNPACK, a .pte file; needs pip install 'esformer[executorch]'
  coreml        a package for Core ML, .mlpackage; needs pip install 'esformer[coreml]'. Core ML runs on Macs alone, so
                what was written is looked at and not run; its card has the lines that compare it on a Mac

Beside a file NAME lie its card NAME.md and the network drawn, NAME.png; a folder has them in it. Graphs take any number
of images; those of litert, executorch and coreml one at a time, as apps do. In graphs batch norms and layer scales
are folded into the convolutions before them; by how much that speeds up the network is measured on one thread of this
machine's CPU.

--quantize writes onnx, openvino, litert and executorch with weights and activations in int8, in a third of the bytes.
Images of the checkpoint's kind are the default, as of pipelines.evaluate: it is calibrated on training images, and kept
only if its top-1 on the validation images falls by no more than --largest-drop. Parts stay in float where that helps.
"""
KINDS = ("safetensors", "onnx", "torch-export", "timm-folder", "openvino", "litert", "executorch", "coreml")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "checkpoint",
        type=cli.path_or_name,
        metavar="CHECKPOINT",
        help="a file or folder of weights, or a name such as esformer_s0",
    )
    add("--to", required=True, choices=KINDS, help="see below", metavar="FORMAT")
    add("--out", type=cli.path, metavar="PATH", help="what to write; by default beside the checkpoint, named after it")
    add("--raw", action="store_true", help="the weights as the last step left them, not their average")
    add("--img-size", type=_size, metavar="PIXELS", help="height and width, 256 or 160x320 (default the checkpoint's)")
    add("--opset", type=int, metavar="N", help="of onnx: the version of its operators (default PyTorch's)")
    add("--no-fold", action="store_true", help="keep batch norms as they are")
    add("--quantize", action="store_true", help="to int8, calibrated and judged on images; see below")
    add("--calibration-images", type=int, metavar="N", help="training images to calibrate on (default 256)")
    add("--evaluate-images", type=int, metavar="N", help="validation images to judge on, drawn at random (default all)")
    add("--largest-drop", type=float, metavar="POINTS", help="of top-1 that may be lost in int8 (default 0.5)")
    add("--license", metavar="NAME", help="of the weights, for the card (default: not stated)")
    add("--wandb", metavar="PROJECT", help="send it to this project of Weights & Biases, as made from its checkpoint")
    add("settings", nargs="*", metavar="key=value", help="with --quantize: which images, such as data.root=/my/images")
    complete(parser)
    return parser.parse_intermixed_args(argv)


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})?", text):
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a number of pixels, or HEIGHTxWIDTH")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Opens, checks, writes, compares, keeps. Returns what was written and how far outputs are apart."""
    options = parse(argv)
    from pipelines.runtime.exporting import run

    return run(options, shlex.join(["python", "-m", "pipelines.export", *(sys.argv[1:] if argv is None else argv)]))


if __name__ == "__main__":
    cli.run(main, goes_on=False)
