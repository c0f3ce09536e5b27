"""Int8 of a small network with all the parts that are told apart, by each runtime's tool, on real images of digits."""

import json

import onnx
import pytest
import torch
from exported import metadata
from onnx import numpy_helper
from torch import nn

from esformer.data.datasets import DataConfig
from esformer.data.sample import sample_images
from esformer.export import FORMATS, quantizing
from esformer.export.comparing import program_of
from esformer.export.quantizing import BOUND, PARTS, Source, choose, parts_of, quantize

DIGITS = DataConfig("digits", img_size=32, num_classes=10, mean=[0.3] * 3, std=[0.4] * 3, workers=0)
ABOUT = {"format": 3, "num_classes": 10, "in_chans": 3, "img_size": [32, 32], "data": {}}
SLOW = ("litert", "executorch")
ABLE = [
    pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in FORMATS if FORMATS[kind].quantize
]
FOUND = {"attention": 4, "first convolution": 1, "classifier": 1}


class Small(nn.Module):
    """Two convolutions, attention with talking heads, a classifier."""

    in_chans, img_size = 3, (32, 32)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3, 4, 1), nn.Conv2d(64, 256, 3, 2, 1)
        self.q, self.k, self.v = nn.Conv2d(256, 64, 1), nn.Conv2d(256, 64, 1), nn.Conv2d(256, 256, 1)
        self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        x = self.second(torch.nn.functional.gelu(self.first(x)))
        q, k, v = (part(x).flatten(2).unflatten(1, (2, -1)) for part in (self.q, self.k, self.v))  # B, 2, C, N
        logits = self.one(q.transpose(2, 3) @ k / 4)
        x = (self.two(logits.softmax(-1)) @ v.transpose(2, 3)).transpose(2, 3)
        return self.head(x.flatten(1, 2).unflatten(2, (4, 4)).mean((2, 3)))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def images():
    return sample_images(DIGITS, 32)[0]


@pytest.fixture(scope="module")
def sources(small, tmp_path_factory):
    """The graph in float32 of each format; made when it is first asked for."""
    made = {}

    def source(name):
        for package in (*FORMATS[name].needs, *FORMATS[name].quantizer):
            pytest.importorskip(package)
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / f"small{FORMATS[name].suffix}"
            FORMATS[name].write(small, ABOUT, made[name])
        return made[name]

    return source


def weights_of(name, path):
    kind = FORMATS[name]
    return (path.with_suffix(kind.weights) if kind.weights else path).stat().st_size


@pytest.mark.parametrize("name", ABLE)
def test_int8_is_near_and_a_quarter_as_large(name, small, images, sources, tmp_path):
    kind, target = FORMATS[name], tmp_path / f"int8{FORMATS[name].suffix}"
    done = quantize(kind.quantize, kind.read, Source(small, sources(name)), target, images, ABOUT)
    found = kind.read(target)(images)
    wanted = small(images).detach()
    assert done.kept == () and 0 < done.error < BOUND
    assert float((found - wanted).norm() / wanted.norm()) == pytest.approx(done.error, rel=0.1)  # of other batches
    assert weights_of(name, target) < 0.3 * weights_of(name, sources(name))
    told = json.loads(metadata(name, target)["esformer"] if name == "onnx" else kind.told(target))
    said = {"weights": "int8", "activations": "int8", "float": [], "calibration_images": 32}
    assert told == ABOUT | {"quantized": said}
    content = target.read_bytes()
    assert str(tmp_path).encode() not in content and b"/site-packages/" not in content


def counted(ops):
    return {part: len(names) for part, names in parts_of(list(ops)).items()}


def ops_of(name, source):
    """A graph's operations, as the quantiser of its format has them."""
    if name == "onnx":
        return quantizing._onnx_ops(onnx.load(source.graph).graph)
    if name == "openvino":
        return quantizing._openvino_ops(pytest.importorskip("openvino").Core().read_model(source.graph))
    if name == "litert":
        return quantizing._litert_ops(source.graph)
    return quantizing._torch_ops(program_of(source.network).module().graph)


@pytest.mark.parametrize("name", ABLE)
def test_every_part_is_found_and_can_be_left_in_float(name, small, images, sources, tmp_path):
    kind, target = FORMATS[name], tmp_path / f"int8{FORMATS[name].suffix}"
    assert counted(ops_of(name, Source(small, sources(name)))) == FOUND
    kind.quantize(Source(small, sources(name)), target, images, PARTS, ABOUT)
    wanted = small(images).detach()
    assert 0 < float((kind.read(target)(images) - wanted).norm() / wanted.norm()) < BOUND
    if name == "onnx":
        weights = {one.name: numpy_helper.to_array(one) for one in onnx.load(target).graph.initializer}
        assert weights["first.weight"].dtype == weights["head.weight"].dtype == "float32"
        assert weights["second.weight_quantized"].dtype == "int8" and abs(weights["second.weight_quantized"]).max() < 65
        assert weights["second.weight_scale"].shape == (256,)


def test_the_parts_are_found_in_pytorchs_graph(small, tmp_path):
    assert counted(ops_of("executorch", Source(small, tmp_path))) == FOUND


def errors(**shares):
    """An error of 0.3 less what each part in float takes off."""
    tried = []

    def error(kept):
        tried.append(kept)
        return 0.3 - sum(shares.get(part.replace(" ", "_"), 0) for part in kept)

    return error, tried


def test_nothing_more_is_tried_if_nothing_need_be_in_float():
    tried = []
    assert choose(lambda kept: tried.append(kept) or BOUND) == () and tried == [()]


@pytest.mark.parametrize(
    ("shares", "kept"),
    [
        ({"classifier": 0.25}, ("classifier",)),
        ({"classifier": 0.1, "attention": 0.15}, ("attention", "classifier")),
        ({"first_convolution": 0.12, "classifier": 0.05, "attention": 0.05}, PARTS),
        ({"classifier": 0.1}, ("classifier",)),  # not enough, but nothing else helps
        ({"classifier": 0.01, "attention": 0.01}, ()),  # nor does anything
        ({"classifier": -0.1, "attention": -0.1, "first_convolution": -0.1}, ()),
    ],
)
def test_the_fewest_parts_that_suffice_stay_in_float(shares, kept):
    error, tried = errors(**shares)
    assert choose(error) == kept
    assert all(list(parts) == [part for part in PARTS if part in parts] for parts in tried)


def test_the_file_is_that_of_the_chosen_parts(small, images, tmp_path, monkeypatch):
    """Also if something else was tried after it."""
    monkeypatch.setattr("esformer.export.quantizing.BOUND", 0.0)
    written = []

    def write(source, target, images, kept, about):
        written.append((kept, about["quantized"]["float"]))
        target.write_text(repr(kept))

    def read(target):
        off = 0.2 if "attention" in target.read_text() else 0.4
        return lambda images: small(images).detach() * (1 + off)

    done = quantize(write, read, Source(small, tmp_path / "a"), tmp_path / "b", images, ABOUT)
    assert done.kept == ("attention",) and (tmp_path / "b").read_text() == "('attention',)"
    assert written[-1] == (("attention",), ["attention"]) and done.error == pytest.approx(0.2, rel=1e-3)


def test_what_is_asked_between_two_tries_may_end_them(small, images, tmp_path):
    tries = []

    def write(source, target, images, kept, about):
        tries.append(kept)
        target.write_bytes(b"")

    def between():
        if len(tries) == 2:
            raise SystemExit(75)

    def read(target):
        return lambda images: small(images).detach() * 2

    with pytest.raises(SystemExit):
        quantize(write, read, Source(small, tmp_path / "a"), tmp_path / "b", images, ABOUT, between)
    assert tries == [(), PARTS]
