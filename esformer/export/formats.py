"""The files that a network is exported to: how each is written, read back, and used by others.

What is known of the weights (`Checkpoint.describe`) travels in all of them, as JSON under the key `esformer`.
"""

import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from torch.export import Dim

from esformer.checkpoint.content import KEY, save_weights
from esformer.checkpoint.loading import load
from esformer.errors import ESFormerError
from esformer.files import write_bytes
from esformer.genotype import Genotype

Computes = Callable[[Tensor], Tensor]
"""Images, B, C, H, W -> outputs, B, classes."""
About = Mapping[str, Any]
"""What `Checkpoint.describe` gives."""

BATCHES = (1, 5)
"""Numbers of images that outputs are compared on; a file is made with another one."""
TOLERANCE = 2e-5
"""How far outputs may be apart, as a share of the largest. Float32 sums in another order were at most 8e-7 apart (S0,
S0-extended and S2; random, disturbed and trained weights; 32 to 224 pixels). A small mistake, GELU by its usual
approximation, made 2e-5 to 1e-4; another epsilon of the norms (1e-3) 1e-3 and more."""
OPSETS = range(18, 26)
"""The versions of ONNX's operators that PyTorch's exporter and onnxscript write."""


class ExportError(ESFormerError):
    """An export that cannot be; says what is in the way."""


@dataclass(frozen=True)
class Difference:
    """How far apart the outputs of two networks are on the same images.

    Args:
        largest: the largest absolute difference.
        scale: the largest absolute output.
    """

    largest: float
    scale: float

    def check(self) -> None:
        """Refuse more than float32 makes of another order of the same sums.

        Raises:
            ExportError: they are farther apart, or not finite.
        """
        if not self.scale < math.inf:  # nor where it is no number
            raise ExportError("the network's outputs are not finite: its weights are bad")
        if not self.largest <= TOLERANCE * self.scale:
            raise ExportError(f"the outputs of what was written differ from PyTorch's by {self}; it is not kept")

    def __str__(self) -> str:
        return f"{self.largest:.1e} where outputs reach {self.scale:.3g}"


@torch.no_grad()
def compare(network: nn.Module, other: Computes) -> Difference:
    """The difference on random images of the network's size, in batches of 1 and 5."""
    generator, pairs = torch.Generator().manual_seed(0), []
    for batch in BATCHES:
        images = images_for(network, batch, generator)
        pairs.append((network(images), other(images)))
    wanted, found = (torch.cat(outputs).double() for outputs in zip(*pairs, strict=True))
    return Difference((wanted - found).abs().max().item(), wanted.abs().max().item())


def images_for(network: nn.Module, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Normal random numbers in the shape of so many of a network's images: B, C, H, W."""
    esformer: Any = network
    return torch.randn(batch, esformer.in_chans, *esformer.img_size, generator=generator)


def write_safetensors(network: nn.Module, about: About, path: Path) -> None:
    """The weights, with all that is known of them."""
    save_weights(path, network.state_dict(), about)


def read_safetensors(path: Path) -> Computes:
    """The network as `esformer.load` gives it."""
    return load(path)


def write_timm(network: nn.Module, about: About, path: Path) -> None:
    """A folder as timm and the Hugging Face hub have them, but for the model card and the drawing."""
    path.mkdir()
    classes = about["data"].get("classes")
    save_config_for_hf(  # timm's public `save_for_hf` writes weights too, which say less than ours
        network,
        path / "config.json",
        model_config={"label_names": classes} if classes else None,
        model_args={name: about[name] for name in ("genotype", "num_classes", "in_chans", "img_size")},
    )
    save_weights(path / "model.safetensors", network.state_dict(), about)
    Genotype.from_dict(about["genotype"]).save(path / "genotype.yaml")


def read_timm(path: Path) -> Computes:
    """The network as `timm.create_model` gives it."""
    network: nn.Module = timm.create_model(f"local-dir:{path}", pretrained=True)
    return network.eval()


def write_program(network: nn.Module, about: About, path: Path) -> None:
    """PyTorch's own graph, for any number of images."""
    program = torch.export.export(network, (images_for(network, 2),), dynamic_shapes=({0: Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names the folders of whoever exports
    file = BytesIO()
    torch.export.save(program, file, extra_files={f"{KEY}.json": json.dumps(about)})
    write_bytes(path, file.getvalue())


def read_program(path: Path) -> Computes:
    """The graph as a module."""
    return torch.export.load(path).module()


def write_onnx(network: nn.Module, about: About, path: Path, opset: int | None = None) -> None:
    """ONNX's graph, for any number of images; its input is `image`, its output `logits`.

    Raises:
        ExportError: it cannot be had in this version of ONNX's operators.
    """
    import onnx

    with _hushed("torch.onnx", "onnxscript"):
        program = torch.onnx.export(
            network,
            (images_for(network, 2),),
            input_names=["image"],
            output_names=["logits" if about["num_classes"] else "features"],
            dynamic_shapes=({0: Dim("batch", min=1)},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset not in (None, written):
        raise ExportError(f"ONNX opset {opset} cannot be written, only {written}")
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # which names the folders of whoever exports
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString())


def read_onnx(path: Path) -> Computes:
    """The graph in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


@contextmanager
def _hushed(*names: str) -> Iterator[None]:
    """Without the warnings of a library, which are for who writes networks, not for who exports them."""
    logs = [logging.getLogger(name) for name in names]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


@dataclass(frozen=True)
class Format:
    """A kind of export.

    Args:
        suffix: with which the name of its file or folder ends.
        write: writes a network, and what is known of it, to a path.
        read: what computes the same, from that path.
        usage: a few lines of Python for whoever gets it; `{name}` stands for the path.
        needs: optional packages.
        is_graph: whether it is a graph, of one image size and not to be trained any more, so norms are folded.
    """

    suffix: str
    write: Callable[..., None]
    read: Callable[[Path], Computes]
    usage: str
    needs: tuple[str, ...] = ()
    is_graph: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, not a file."""
        return not self.suffix.startswith(".")

    def check_packages(self) -> None:
        """Refuse to begin without what it needs.

        Raises:
            ExportError: a package is missing; says how to install it.
        """
        if missing := [name for name in self.needs if importlib.util.find_spec(name) is None]:
            raise ExportError(
                f"{' and '.join(missing)} cannot be imported; install what exports need: pip install 'esformer[export]'"
            )


FORMATS = {
    "safetensors": Format(
        ".safetensors",
        write_safetensors,
        read_safetensors,
        'import esformer\n\nnetwork = esformer.load("{name}")\nlogits = network(images)',
    ),
    "onnx": Format(
        ".onnx",
        write_onnx,
        read_onnx,
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{name}")\n'
        '(logits,) = session.run(None, {{"image": images}})',
        needs=("onnx", "onnxscript", "onnxruntime"),
        is_graph=True,
    ),
    "torch-export": Format(
        ".pt2",
        write_program,
        read_program,
        'import torch\n\nnetwork = torch.export.load("{name}").module()\nlogits = network(images)',
        is_graph=True,
    ),
    "timm-folder": Format(
        "-timm",
        write_timm,
        read_timm,
        "import esformer.model.registry\nimport timm\n\n"
        'network = timm.create_model("local-dir:{name}", pretrained=True).eval()\nlogits = network(images)',
    ),
}
"""What `--to` may be."""
