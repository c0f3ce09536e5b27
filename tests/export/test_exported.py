"""Exported files that are opened again: ours, other people's, and damaged ones. The network is a convolution."""

import json

import onnx
import pytest
import torch
from torch import nn

from esformer.checkpoint import CheckpointError
from esformer.errors import ESFormerError
from esformer.export import FORMATS
from esformer.export.exported import exported_kind, open_exported
from esformer.genotype import Genotype

ABOUT = {
    "format": 3,
    "version": "0.1.0",
    "weights": "averaged",
    "genotype": Genotype.shipped("esformer_s0").to_dict(),
    "num_classes": 2,
    "in_chans": 3,
    "img_size": [32, 32],
    "recipe": {},
    "data": {"name": "folder", "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3},
    "metrics": {},
    "provenance": {},
}


class Small(nn.Module):
    in_chans, img_size = 3, (32, 32)

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 2, 32)

    def forward(self, x):
        return self.head(x).flatten(1)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(params=["onnx", "openvino"])
def name(request):
    for package in FORMATS[request.param].needs:
        pytest.importorskip(package)
    return request.param


@pytest.fixture
def written(small, name, tmp_path):
    """Write the network, with something else said of it."""

    def write(**said):
        path = tmp_path / f"x{FORMATS[name].suffix}"
        FORMATS[name].write(small, ABOUT | said, path)
        return path

    return write


def test_it_is_known_and_run_as_a_checkpoint_is(written, small, name):
    path = written()
    found = open_exported(path, exported_kind(str(path)))
    assert found.kind is FORMATS[name] and found.describe() == ABOUT and found.img_size == (32, 32)
    assert found.genotype == Genotype.shipped("esformer_s0") and found.data == ABOUT["data"] and not found.random
    images = torch.randn(3, 3, 32, 32).to(memory_format=torch.channels_last)
    torch.testing.assert_close(found.network()(images), small(images).detach(), rtol=0, atol=1e-5)
    with pytest.raises(CheckpointError, match="holds a program, whose weights are not to be had"):
        found.weights()


def test_its_digest_is_that_of_all_its_bytes(written, name):
    path = written()
    found = open_exported(path, FORMATS[name])
    before = found.digest()
    weights = path.with_suffix(FORMATS[name].weights) if FORMATS[name].weights else path
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert found.digest() != before and len(before) == 16


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"format": 99}, "is of format 99, and 1 to .* are known here: update esformer"),
        ({"genotype": {"genotype": 1}}, "x.* genotype"),
        ({"num_classes": None}, "is not as this or an earlier version of esformer writes it"),
        ({"data": {"mean": [7, 7, 7]}}, "says what cannot be of its weights: data.mean is"),
        ({"img_size": [32, 10**6]}, "1,000,000 pixels"),
    ],
)
def test_what_it_says_and_cannot_be_is_refused(small, tmp_path, said, message):
    path = tmp_path / "x.onnx"
    model = onnx.helper.make_model(identity())
    onnx.helper.set_model_props(model, {"esformer": json.dumps(ABOUT | said)})
    onnx.save(model, path)
    with pytest.raises(ESFormerError, match=message) as refused:
        open_exported(path, FORMATS["onnx"])
    assert "\n" not in str(refused.value)


def identity():
    shape = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 32, 32])
    out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 3, 32, 32])
    return onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["logits"])], "g", [shape], [out])


def test_files_of_others_are_refused(tmp_path):
    onnx.save(onnx.helper.make_model(identity()), tmp_path / "x.onnx")
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.convert_model(tmp_path / "x.onnx"), tmp_path / "x.xml")
    (tmp_path / "x.tflite").write_text("no archive")
    for name in ("x.onnx", "x.xml"):
        with pytest.raises(
            ESFormerError, match=f"{name} does not say what it is .* not one that pipelines.export wrote"
        ):
            open_exported(tmp_path / name, exported_kind(name))
    assert FORMATS["litert"].told(tmp_path / "x.tflite") is None


def test_damaged_and_missing_files_are_refused(written, name):
    path, kind = written(), FORMATS[name]
    with pytest.raises(ESFormerError, match="y.* does not exist"):
        open_exported(path.with_stem("y"), kind)
    if kind.weights:
        path.with_suffix(kind.weights).rename(path.with_suffix(".old"))
        with pytest.raises(ESFormerError, match=f"x{kind.weights} does not exist"):
            open_exported(path, kind)
        path.with_suffix(".old").rename(path.with_suffix(kind.weights))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ESFormerError, match="cannot be opened by its runtime; is it damaged?") as refused:
        open_exported(path, kind)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("x.onnx", r"onnxruntime cannot be imported; install what runs .onnx files: pip install 'esformer\[export\]'"),
        ("x.xml", r"openvino cannot be imported; .*: pip install 'esformer\[openvino\]'"),
        ("x.tflite", "ai_edge_litert cannot be imported; .*: pip install ai-edge-litert"),
        ("x.pte", r"executorch cannot be imported; .*: pip install 'esformer\[executorch\]'"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, tmp_path, file, sentence):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ESFormerError, match=sentence):
        open_exported(tmp_path / file, exported_kind(file))


def test_which_files_are_exported_ones():
    assert [exported_kind(name) for name in ("a.onnx", "b/c.xml")] == [FORMATS["onnx"], FORMATS["openvino"]]
    for name in ("last.ckpt", "a.safetensors", "esformer_s0", "timm:efficientformerv2_s0", "a.pt2", ""):
        assert exported_kind(name) is None


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"img_size": [64, 64]}, "does not take the images that it says it does, 64 x 64 pixels|tells 2 classes apart"),
        ({"num_classes": 3, "data": {}}, "says that it tells 3 classes apart, and does not"),
    ],
)
def test_a_graph_that_is_not_what_the_file_says_is_refused(written, said, sentence):
    path = written(**said)
    with pytest.raises(ESFormerError, match=sentence):
        open_exported(path, exported_kind(str(path))).network()


@pytest.mark.parametrize("said", [True, {"float": 3}, {}])
def test_what_was_left_in_float_must_be_a_list(written, said):
    path = written(quantized=said)
    with pytest.raises(ESFormerError, match="does not say what was left in float"):
        open_exported(path, exported_kind(str(path)))
