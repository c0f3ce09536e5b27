"""`pipelines.evaluate --speed`: a checkpoint and what was exported from it, side by side. What stands for the exported
files computes something smaller, which nobody notices but the clock.
"""

import csv

import pytest
import torch
from torch import nn

from esformer.checkpoint import open_checkpoint, save_weights
from esformer.errors import ESFormerError
from esformer.export import FORMATS
from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer
from pipelines import evaluate
from pipelines.timing import exports


class Small(nn.Module):
    in_chans, img_size = 3, (32, 32)

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 10, 32)

    def forward(self, x):
        return self.head(x).flatten(1)


class Other(Small):
    img_size = (16, 16)

    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(exports, "SECONDS", 0.01)
    monkeypatch.setattr(exports, "possible_threads", lambda: [1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, two exports of it, one for other images, one of another network, a lie, and a damaged one."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("exports")
    network = ESFormer(Genotype.shipped("esformer_s0"), 10, img_size=32)
    about = {"genotype": Genotype.shipped("esformer_s0").to_dict(), "num_classes": 10, "in_chans": 3}
    about |= {"format": 3, "version": "0.1.0", "weights": "averaged", "img_size": [32, 32]}
    about |= {"recipe": {}, "metrics": {}, "provenance": {}, "data": {"name": "digits"}}
    save_weights(folder / "last.safetensors", network.state_dict(), about)
    write, small = FORMATS["onnx"].write, Small().eval()
    write(small, about, folder / "last.onnx")
    write(small, about | {"quantized": {"float": []}}, folder / "last-int8.onnx")
    write(small, about | {"img_size": [64, 64]}, folder / "larger.onnx")
    write(small, about | {"genotype": Genotype.shipped("efficientformerv2_s0").to_dict()}, folder / "other.onnx")
    write(Other().eval(), about, folder / "lie.onnx")
    (folder / "damaged.onnx").write_bytes(b"no graph")
    return folder


def test_what_belongs_together_is_timed_side_by_side(folder, tmp_path, capsys):
    command = [str(folder / "last.safetensors"), "--speed", "--batch-size", "3", "--out", str(tmp_path / "out")]
    report = evaluate.main(command)
    found = {speed["file"]: speed for speed in report["speeds"]}
    assert list(found) == ["last.safetensors", "last-int8.onnx", "last.onnx"]
    assert [speed["precision"] for speed in found.values()] == ["float32", "int8", "float32"]
    assert [speed["runtime"].split()[0] for speed in found.values()] == ["torch", "onnxruntime", "onnxruntime"]
    assert found["last.onnx"]["megabytes"] == (folder / "last.onnx").stat().st_size / 1e6
    assert found["last.onnx"]["ms"] < found["last.safetensors"]["ms"]  # a convolution, and a whole network
    assert found["last.onnx"]["images_per_second"] > found["last.safetensors"]["images_per_second"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["speed.csv"]
    rows = list(csv.DictReader((tmp_path / "out" / "speed.csv").open()))
    assert [row["file"] for row in rows] == list(found) and {row["threads"] for row in rows} == {"1"}
    printed = capsys.readouterr().out
    for said in (
        "larger.onnx takes images of 64 x 64 pixels, not of 32",
        "other.onnx holds another network",
        "lie.onnx does not take the images that it says it does",
        "damaged.onnx cannot be opened",
    ):
        assert said in printed
    assert "images of 32 pixels, 3 at a time" in printed


def test_an_exported_file_is_timed_alone_with_the_threads_asked_for(folder, tmp_path):
    before = torch.get_num_threads()
    report = evaluate.main(
        [str(folder / "last.onnx"), "--speed", "trainer.threads=2", "--out", str(tmp_path), "--batch-size", "1"]
    )
    assert [(speed["file"], speed["threads"]) for speed in report["speeds"]] == [("last.onnx", 2)]
    assert torch.get_num_threads() == before


def test_a_runtime_that_chooses_its_threads_is_timed_once(folder, monkeypatch):
    found = open_checkpoint(folder / "last.safetensors")
    monkeypatch.setattr(exports, "chooses_threads", lambda one: one is found)
    speeds = list(exports.measure([found], [1, 2], size=32, batch=1, ema=True))
    assert [speed.threads for speed in speeds] == [None]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--raw"], "one kind of weights"),
        (["data.img_size=64"], "takes images of 32 pixels, not of data.img_size=64"),
    ],
)
def test_what_an_exported_file_cannot_do_is_refused(folder, arguments, sentence):
    with pytest.raises(ESFormerError, match=sentence):
        evaluate.main([str(folder / "last.onnx"), "--speed", *arguments])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data.root=/images", "data.img_size=64"], "without images: leave out data.root=/images$"),
        (["--batch-size", "0"], "--batch-size is 0; it must be from 1 to 1,000,000"),
        (["--batch-size", "1000000", "data.img_size=2048"], "the memory does not hold 1000000 images at a time"),
        (["data.img_size=100000"], "at most"),
    ],
)
def test_what_is_refused(folder, arguments, sentence):
    with pytest.raises(ESFormerError, match=sentence):
        evaluate.main([str(folder / "last.safetensors"), "--speed", *arguments])
    assert not (folder / "last-evaluation").exists()
