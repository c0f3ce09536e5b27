import copy
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esformer.export import FORMATS, ExportError, compare, fold
from esformer.export.comparing import BATCHES, Difference, images_for
from esformer.export.formats import write_onnx
from esformer.model.esformer import ESFormer


@pytest.fixture(scope="module")
def network(draw, randomise):
    torch.manual_seed(0)
    return randomise(ESFormer(draw(), num_classes=7, in_chans=2, img_size=(64, 96)))


def test_rounding_passes(network):
    difference = compare(network, fold(network))
    assert 0 < difference.largest < 1e-5
    difference.check()


def test_a_small_mistake_does_not(network):
    wrong = copy.deepcopy(network)
    for module in wrong.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-4
    with pytest.raises(ExportError, match=r"differ from PyTorch's by \S+ where outputs reach \S+; it is not kept"):
        compare(network, wrong).check()


def test_a_mistake_in_one_image_of_a_batch_does_not(network):
    def wrong(images):
        outputs = network(images).clone()
        outputs[3:, 2] += 1e-4
        return outputs

    difference = compare(network, wrong)
    assert difference.largest == pytest.approx(1e-4, rel=1e-2)
    with pytest.raises(ExportError):
        difference.check()


@pytest.mark.parametrize("scale, largest", [(float("nan"), float("nan")), (float("inf"), float("nan"))])
def test_outputs_that_are_not_finite_do_not(scale, largest):
    with pytest.raises(ExportError, match="weights are bad"):
        Difference(largest, scale).check()


def test_a_nan_of_the_file_alone_does_not():
    with pytest.raises(ExportError, match="differ"):
        Difference(float("nan"), 1.0).check()


def test_images_have_the_networks_shape_and_are_always_the_same(network):
    seen = []
    compare(network, lambda images: (seen.append(images), network(images))[1])
    assert [tuple(images.shape) for images in seen] == [(batch, 2, 64, 96) for batch in BATCHES]
    compare(network, lambda images: (seen.append(images), network(images))[1])
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert images_for(network, 3).shape == (3, 2, 64, 96)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnx") else object())
    FORMATS["safetensors"].check_packages()
    with pytest.raises(ExportError, match=r"onnx and onnxscript and onnxruntime.*pip install 'esformer\[export\]'"):
        FORMATS["onnx"].check_packages()


@pytest.mark.parametrize(
    "kind, command",
    [
        ("openvino", "needs: pip install 'esformer[openvino]'"),
        ("executorch", "needs: pip install 'esformer[executorch]'"),
        ("coreml", "needs: pip install 'esformer[coreml]'"),
        (
            "litert",
            "its own, .*: python -m venv litert && .*install -e .* && .* 'litert-torch>=0.10,<0.11'",
        ),
    ],
)
def test_each_optional_format_names_its_own_extra(monkeypatch, kind, command):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=command.replace("[", r"\[").replace("]", r"\]")) as refused:
        FORMATS[kind].check_packages()
    assert str(refused.value).startswith(" and ".join(FORMATS[kind].needs))


def test_every_extra_that_a_format_names_is_there():
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for kind in FORMATS.values():
        named = " ".join(extras["optional-dependencies"][kind.extra]) if kind.extra else ""
        assert not kind.extra or all(package.replace("_", "-") in named for package in kind.needs)


class Padded(nn.Module):
    """A network of one operation that ONNX has in opset 18 and later."""

    in_chans, img_size = 1, (4, 4)

    def forward(self, x):
        return F.pad(x, (0, 0, 0, 0, 0, 1)).mean((2, 3))


def test_an_opset_that_the_exporter_falls_short_of_is_refused(tmp_path):
    about = {"num_classes": 2, "in_chans": 1, "img_size": [4, 4], "data": {}}
    write_onnx(Padded().eval(), about, tmp_path / "18.onnx", 18)
    with pytest.raises(ExportError, match="ONNX opset 17 cannot be written, only 18"):
        write_onnx(Padded().eval(), about, tmp_path / "17.onnx", 17)
    assert [path.name for path in tmp_path.iterdir()] == ["18.onnx"]


class Odd(nn.Module):
    """With an operator that ONNX does not have."""

    in_chans, img_size = 3, (8, 8)

    def forward(self, x):
        return torch.linalg.eigvals(x.mean(1)).real


@pytest.mark.slow
def test_an_operator_that_a_format_does_not_have_is_a_sentence(tmp_path):
    kind = FORMATS["onnx"]
    for package in kind.needs:
        pytest.importorskip(package)
    said = r"^onnx cannot write this network as \.onnx; it says: No ONNX function found for .*linalg_eig.*$"
    with pytest.raises(ExportError, match=said) as refused, kind.refusals():
        kind.write(Odd(), {"num_classes": 8, "data": {}}, tmp_path / "odd.onnx")
    assert refused.value.__cause__ is not None
    for other in (ExportError("ours"), MemoryError(), ImportError("not installed")):
        with pytest.raises(type(other)) as passed, kind.refusals():
            raise other
        assert passed.value is other
