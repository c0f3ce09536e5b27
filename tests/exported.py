"""Exports as their users open them: with the runtime's own tools, not ours."""

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open

import esformer
from esformer.export import FORMATS
from pipelines import export

OPTIONS = {"onnx": ["--opset", "21"], "timm-folder": ["--license", "mit"]}
APPS = ("onnx", "openvino", "litert", "executorch", "coreml")
KEYS = ("esformer", "image_size", "image_mean", "image_std", "class_names")


class Exports(dict):
    """What each kind of export gave, beside the checkpoint; made when it is first asked for."""

    def __init__(self, checkpoint):
        super().__init__()
        self.checkpoint = checkpoint

    def __missing__(self, kind):
        if missing := [name for name in FORMATS[kind].needs if find_spec(name) is None]:
            pytest.skip(f"needs {' and '.join(missing)}")
        self[kind] = export.main([str(self.checkpoint), "--to", kind, *OPTIONS.get(kind, [])])
        return self[kind]


def opened(kind, path):
    """The exported network as its users open it, images -> outputs."""
    if kind == "safetensors":
        return esformer.load(path)
    if kind == "timm-folder":
        return timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    if kind == "torch-export":
        return torch.export.load(path).module()
    if kind == "openvino":
        import openvino

        network = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda images: torch.tensor(network({"image": images})["logits"])
    if kind == "litert":
        from ai_edge_litert.interpreter import Interpreter

        run = Interpreter(str(path)).get_signature_runner()
        return lambda images: torch.cat([torch.tensor(run(image=image[None].numpy())["logits"]) for image in images])
    if kind == "executorch":
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        method = program.load_method("forward")
        return lambda images: torch.cat([method.execute([image[None]])[0].clone() for image in images])
    session = onnxruntime.InferenceSession(path)
    return lambda images: torch.tensor(session.run(["logits"], {"image": images.numpy()})[0])


def metadata(kind, path):
    """What a format holds, by its keys, as its users read it."""
    if kind == "onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    if kind == "openvino":
        import openvino

        info = openvino.Core().read_model(path).rt_info
        return {key: info[key].value for key in KEYS}
    if kind == "litert":
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".json"): archive.read(name).decode() for name in archive.namelist()}
    if kind == "executorch":
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        return {key: program.load_method(key).execute([])[0] for key in KEYS}
    import coremltools

    return coremltools.models.MLModel(str(path), skip_model_load=True).user_defined_metadata


def description(kind, path):
    """What travels with the weights."""
    if kind in APPS:
        return json.loads(metadata(kind, path)["esformer"])
    if kind == "torch-export":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(next(name for name in archive.namelist() if name.endswith("esformer.json"))))
    path = Path(path) / "model.safetensors" if kind == "timm-folder" else path
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["esformer"])
