"""The files that a network is exported to: how each is written, read back, and used by others.

What is known of the weights (`Checkpoint.describe`) travels in all of them, as JSON under the key `esformer`. Those of
the runtimes of apps are written in `runtimes.py`.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import nn
from torch.export import Dim

from esformer.checkpoint.content import KEY, save_weights
from esformer.checkpoint.loading import load
from esformer.errors import ESFormerError, out_of_memory
from esformer.export import runtimes
from esformer.export.comparing import About, Computes, ExportError, hushed, images_for, program_of
from esformer.export.metadata import metadata
from esformer.export.quantizing import (
    Quantizer,
    quantize_executorch,
    quantize_litert,
    quantize_onnx,
    quantize_openvino,
)
from esformer.files import write_bytes
from esformer.genotype import Genotype

OPSETS = range(18, 26)
"""The versions of ONNX's operators that PyTorch's exporter and onnxscript write."""
SAID = 200
"""Characters of what a package says of a network that it cannot write."""


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
    file = BytesIO()
    torch.export.save(program_of(network), file, extra_files={f"{KEY}.json": json.dumps(about)})
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

    with hushed("torch.onnx", "onnxscript"):
        program = torch.onnx.export(
            network,
            (images_for(network, 2),),
            input_names=[runtimes.INPUT],
            output_names=[runtimes.output_of(about)],
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
    onnx.helper.set_model_props(model, metadata(about))
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString())


def read_onnx(path: Path) -> Computes:
    """The graph in onnxruntime, on as many threads of the CPU as PyTorch has."""
    session = _session(path)
    return lambda images: torch.from_numpy(session.run(None, {runtimes.INPUT: images.numpy()})[0])


def told_onnx(path: Path) -> str | None:
    """What the file says of itself."""
    told: str | None = _session(path).get_modelmeta().custom_metadata_map.get(KEY)
    return told


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Format:
    """A kind of export.

    Args:
        suffix: with which the name of its file or folder ends.
        write: writes a network, and what is known of it, to a path.
        read: what computes the same, from that path; or None, after a look at it, where its runtime is not to be had.
        usage: a few lines of Python for whoever gets it; `{name}` stands for the path.
        needs: optional packages.
        extra: of this package, which brings them.
        environment: the command that makes one for them, where they do not fit beside what this package needs.
        is_graph: whether it is a graph, of one image size and not to be trained any more, so norms are folded.
        any_number: whether it takes any number of images, not one at a time.
        holds: what lies in the folder that it is; nothing if it is a file.
        weights: with which the name of a second file ends, if it is two.
        told: gives what a file says of itself, as JSON, so that it can be evaluated; None if it says nothing.
        runtime: packages that run it, which may be fewer than write it.
        own_threads: whether the runtime chooses how many threads it takes.
        quantize: writes a graph in int8, from that in float32, as `quantizing.quantize` has it; None if it cannot.
        quantizer: packages that this needs beside.
    """

    suffix: str
    write: Callable[..., None]
    read: Callable[[Path], Computes | None]
    usage: str
    needs: tuple[str, ...] = ()
    extra: str = ""
    environment: str = ""
    is_graph: bool = False
    any_number: bool = True
    holds: frozenset[str] = frozenset()
    weights: str = ""
    told: Callable[[Path], str | None] | None = None
    runtime: tuple[str, ...] = ()
    own_threads: bool = False
    quantize: Quantizer | None = None
    quantizer: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder for people, with the card in it; not a file, or what others take for one."""
        return not self.suffix.startswith(".")

    @property
    def install(self) -> str:
        """The command that installs what it needs."""
        return self.environment or f"pip install 'esformer[{self.extra}]'"

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Say in a sentence that what converts to this format does not take a network, an operator perhaps.

        Raises:
            ExportError: has the end of what the package says, which sums it up; all of it is the error's cause.
        """
        try:
            yield
        except (ESFormerError, ImportError, OSError):
            raise
        except Exception as error:  # each package has its own
            if out_of_memory(error):
                raise
            reason: BaseException = error
            while reason.__cause__ is not None:
                reason = reason.__cause__
            said = " ".join(str(reason).split())[-SAID:] or type(reason).__name__
            tool = self.needs[0] if self.needs else "PyTorch"
            raise ExportError(f"{tool} cannot write this network as {self.suffix}; it says: {said}") from error

    def check_packages(self, quantize: bool = False) -> None:
        """Refuse to begin without what it needs.

        Args:
            quantize: to int8.

        Raises:
            ExportError: a package is missing; says how to install it.
        """
        needs = self.needs + (self.quantizer if quantize else ())
        if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
            where = " into an environment of its own, since it changes others' packages" if self.environment else ""
            raise ExportError(
                f"{' and '.join(missing)} cannot be imported; install what this export needs{where}: {self.install}"
            )

    def check_runtime(self) -> None:
        """Refuse to run a file without what runs it.

        Raises:
            ExportError: a package is missing; says how to install it.
        """
        if missing := [name for name in self.runtime if importlib.util.find_spec(name) is None]:
            install = self.install if self.extra else f"pip install {' '.join(self.runtime).replace('_', '-')}"
            raise ExportError(
                f"{' and '.join(missing)} cannot be imported; install what runs {self.suffix} files: {install}"
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
        extra="export",
        is_graph=True,
        told=told_onnx,
        runtime=("onnxruntime",),
        quantize=quantize_onnx,
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
        holds=frozenset({"README.md", "config.json", "genotype.png", "genotype.yaml", "model.safetensors"}),
    ),
    "openvino": Format(
        ".xml",
        runtimes.write_openvino,
        runtimes.read_openvino,
        'import openvino\n\nexact = {{"INFERENCE_PRECISION_HINT": "f32"}}  # not bfloat16, where the CPU has it\n'
        'network = openvino.compile_model("{name}", "CPU", exact)\nlogits = network(images)[0]',
        needs=("openvino",),
        extra="openvino",
        is_graph=True,
        weights=".bin",
        told=runtimes.told_openvino,
        runtime=("openvino",),
        quantize=quantize_openvino,
        quantizer=("nncf",),
    ),
    "litert": Format(
        ".tflite",
        runtimes.write_litert,
        runtimes.read_litert,
        "from ai_edge_litert.interpreter import Interpreter\n\n"
        'run = Interpreter("{name}").get_signature_runner()\n(logits,) = run(image=images).values()',
        needs=("litert_torch", "ai_edge_litert"),
        environment="python -m venv litert && litert/bin/pip install -e ."
        " && litert/bin/pip install 'litert-torch>=0.10,<0.11'",
        is_graph=True,
        any_number=False,
        told=runtimes.told_litert,
        runtime=("ai_edge_litert",),
        quantize=quantize_litert,
        quantizer=("ai_edge_quantizer",),
    ),
    "executorch": Format(
        ".pte",
        runtimes.write_executorch,
        runtimes.read_executorch,
        "from executorch.runtime import Runtime\n\n"
        'method = Runtime.get().load_program("{name}").load_method("forward")\n(logits,) = method.execute([images])',
        needs=("executorch",),
        extra="executorch",
        is_graph=True,
        any_number=False,
        told=runtimes.told_executorch,
        runtime=("executorch",),
        own_threads=True,
        quantize=quantize_executorch,
        quantizer=("torchao",),
    ),
    "coreml": Format(
        ".mlpackage",
        runtimes.write_coreml,
        runtimes.read_coreml,
        "import json\nimport coremltools\nimport numpy\n\n"
        'network = coremltools.models.MLModel("{name}", compute_units=coremltools.ComputeUnit.CPU_ONLY)\n'
        '(logits,) = network.predict({{"image": images}}).values()\n\n'
        "# on a Mac, what it gives for one image and what it should; they differ by 2e-5 of the largest at most\n"
        "ramp = numpy.linspace(-2, 2, images.size, dtype=numpy.float32).reshape(images.shape)\n"
        '(found,) = network.predict({{"image": ramp}}).values()\n'
        'wanted = numpy.array(json.loads(network.user_defined_metadata["check"]))\n'
        "print(abs(found - wanted).max() / abs(wanted).max())",
        needs=("coremltools",),
        extra="coreml",
        is_graph=True,
        any_number=False,
        holds=frozenset({"Data", "Manifest.json"}),
    ),
}
"""What `--to` may be."""
