"""Graphs for the runtimes of apps: OpenVINO, LiteRT, ExecuTorch and Core ML, each made by its own converter.

The input is `image` and the output `logits` (`features` without a classifier) wherever a format names them. Weights
stay float32. OpenVINO's graph takes any number of images, the others one at a time, as apps do. The packages are
optional, so they are imported where they are used.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from esformer.checkpoint.content import KEY
from esformer.export.comparing import About, Computes, ExportError, hushed, images_for, program_of
from esformer.export.metadata import metadata
from esformer.files import FileError, write_bytes

INPUT = "image"
SIGNATURE = "serving_default"
"""Under which LiteRT's graph is called."""
CHECK = "check"
"""Under which a Core ML model has the outputs that it should have for `ramp`, for whoever runs it on a Mac."""


UNREPORTED = {"CI": "true"}
"""The environment in which OpenVINO does not report to Intel that it is imported or converts something."""


class _Named(nn.Module):
    """A network whose input has the name that graphs take over."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        esformer: Any = network
        self.network, self.in_chans, self.img_size = network, esformer.in_chans, esformer.img_size
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        outputs: Tensor = self.network(image)
        return outputs


def output_of(about: About) -> str:
    """The name of a graph's output."""
    return "logits" if about["num_classes"] else "features"


def write_openvino(network: nn.Module, about: About, path: Path) -> None:
    """OpenVINO's graph, for any number of images, and its weights beside it; metadata in the graph's `rt_info`."""
    openvino = _openvino()
    with hushed(), patch.dict(os.environ, UNREPORTED):
        model = openvino.convert_model(program_of(_Named(network)))
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({output_of(about)})
    save_openvino(model, about, path)


def save_openvino(model: Any, about: About, path: Path) -> None:
    """Write a graph of OpenVINO's with metadata."""
    for key, text in metadata(about).items():
        model.set_rt_info(text, key)
    with _writing(path):
        _openvino().save_model(model, path, compress_to_fp16=False)


def read_openvino(path: Path) -> Computes:
    """The graph in OpenVINO on as many threads of the CPU as PyTorch has.

    It would compute in bfloat16 else, where the CPU can.
    """
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = _openvino().compile_model(path, "CPU", settings)
    return lambda images: torch.from_numpy(network(images.numpy())[0].copy())


def told_openvino(path: Path) -> str | None:
    """What the graph says of itself."""
    model = _openvino().Core().read_model(path)
    return str(model.rt_info[KEY].value) if model.has_rt_info(KEY) else None


def _openvino() -> Any:
    with patch.dict(os.environ, UNREPORTED):
        import openvino
    return openvino


def write_litert(network: nn.Module, about: About, path: Path) -> None:
    """LiteRT's graph, and at its end, as LiteRT's labels are, a zip archive with a JSON file for each metadata."""
    with hushed("absl", "jax", "root"):
        import litert_torch

        program = litert_torch.convert(_Outputs(network, output_of(about)), sample_kwargs={INPUT: _image(network)})
    save_litert(program.model_content(), about, path)


def save_litert(content: bytes, about: About, path: Path) -> None:
    """Write a graph of LiteRT's with metadata."""
    file = BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        for key, text in metadata(about).items():
            archive.writestr(f"{key}.json", text)
    write_bytes(path, file.getvalue())


def read_litert(path: Path) -> Computes:
    """The graph in LiteRT's interpreter, on as many threads as PyTorch has."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path), num_threads=torch.get_num_threads()).get_signature_runner()
    return _one_by_one(lambda image: torch.from_numpy(next(iter(run(**{INPUT: image.numpy()}).values()))))


def told_litert(path: Path) -> str | None:
    """What stands in the archive at the end of the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{KEY}.json").decode()
    except (zipfile.BadZipFile, KeyError):
        return None


def write_executorch(network: nn.Module, about: About, path: Path) -> None:
    """ExecuTorch's program for XNNPACK; each metadata is what a method of its name gives."""
    with hushed():
        program = program_of(_Named(network), any_number=False)
    save_executorch(program, about, path)


def save_executorch(program: ExportedProgram, about: About, path: Path) -> None:
    """Compile PyTorch's graph to a program for XNNPACK, and write it with metadata.

    Softmax is not XNNPACK's but ExecuTorch's own: ExecuTorch 1.5.1 has XNNPACK compute one that follows a convolution
    over the channels instead of the last axis, where attention's are.
    """
    with hushed():
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
        from executorch.backends.xnnpack.partition.config.generic_node_configs import SoftmaxConfig
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        parts = [config for config in ALL_PARTITIONER_CONFIGS if config is not SoftmaxConfig]
        edge = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner(configs=parts)], constant_methods=metadata(about)
        )
        content = edge.to_executorch().buffer
    write_bytes(path, content)


def read_executorch(path: Path) -> Computes:
    """The program in ExecuTorch's runtime."""
    with hushed():
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(path).load_method("forward")
    return _one_by_one(lambda image: method.execute([image])[0].clone())  # whose memory is used again


def told_executorch(path: Path) -> str | None:
    """What the program's method of that name gives."""
    with hushed():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        return str(program.load_method(KEY).execute([])[0]) if KEY in program.method_names else None


def write_coreml(network: nn.Module, about: About, path: Path) -> None:
    """Core ML's package for iOS 16, macOS 13 and later; metadata in `user_defined_metadata`."""
    image = torch.from_numpy(ramp((1, *_image(network).shape[1:])))
    with hushed("coremltools"), torch.no_grad():
        import coremltools

        model = coremltools.convert(
            program_of(_Named(network), any_number=False).run_decompositions({}),
            outputs=[coremltools.TensorType(name=output_of(about))],
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=coremltools.precision.FLOAT32,
        )
        model.user_defined_metadata.update(metadata(about))
        model.user_defined_metadata[CHECK] = json.dumps(network(image).flatten().tolist())
        with _writing(path):
            model.save(path)
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    for made in path.rglob("*"):  # some of it is for its owner alone
        made.chmod((path if made.is_dir() else path / "Manifest.json").stat().st_mode)


def read_coreml(path: Path) -> None:
    """Nothing that computes, for Core ML is on Macs alone; but what the package says of itself is looked at.

    Raises:
        ExportError: it is not what was meant.
    """
    with hushed("coremltools"):
        import coremltools

        model = coremltools.models.MLModel(str(path), skip_model_load=True)
    description, about = model.get_spec().description, json.loads(model.user_defined_metadata["esformer"])
    found = [
        (feature.name, list(feature.type.multiArrayType.shape), feature.type.multiArrayType.dataType)
        for feature in (*description.input, *description.output)
    ]
    outputs = len(json.loads(model.user_defined_metadata[CHECK]))
    float32 = coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    shapes = {INPUT: [1, about["in_chans"], *about["img_size"]], output_of(about): [1, outputs]}
    if found != [(name, shape, float32) for name, shape in shapes.items()]:
        raise ExportError(f"what was written has inputs and outputs {found}, not {shapes}; it is not kept")


def ramp(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """An image that anybody can make: from -2 to 2 in equal steps."""
    return np.linspace(-2, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)


class _Outputs(_Named):
    """A network whose output has a name too."""

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__(network)
        self.output = output

    def forward(self, image: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {self.output: self.network(image)}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """In a sentence what libraries that write by themselves raise when, most often, the disk is full."""
    try:
        yield
    except (RuntimeError, shutil.Error) as error:
        raise FileError(f"{path.name} cannot be written; is the disk full?") from error


def _image(network: nn.Module) -> Tensor:
    return images_for(network, 1)


def _one_by_one(run: Computes) -> Computes:
    return lambda images: torch.cat([run(image[None]) for image in images])
