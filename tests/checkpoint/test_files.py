"""Every kind of weights file opens, and says what it is."""

import argparse
import json
import lzma
from importlib.metadata import version
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import esformer
from esformer.checkpoint import CheckpointError, open_checkpoint
from esformer.genotype import Genotype

STORED = Path(__file__).parent / "stored"


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_checkpoint_of_the_training_says_all_that_is_known(known, content, genotype):
    assert known.genotype == genotype
    assert (known.num_classes, known.in_chans, known.img_size) == (10, 3, (64, 64))
    assert same(known.averaged, content["state_dict_ema"]) and not same(known.raw, known.averaged)
    assert known.version.startswith(version("esformer"))
    assert known.recipe["lr"] == 1e-3 and known.recipe["mixup"] == 0.8
    assert known.data["name"] == "digits" and known.data["classes"] == list("0123456789")
    assert known.data["crop_pct"] == 0.9 and known.data["interpolation"] == "bicubic"
    assert 0 < known.metrics["val/ema_top1"] < 1 and known.metrics["val/loss"] > 0
    assert known.provenance["search_evaluations"] == 510


def test_a_saved_file_alone_says_as_much(known, tmp_path):
    for ema in (True, False):
        known.save(tmp_path / "w.safetensors", ema)
        again = open_checkpoint(tmp_path / "w.safetensors")
        assert same(again.weights(), known.weights(ema))
        assert (again.raw is None) == ema
        assert again.describe() == known.describe(ema)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert json.loads(file.metadata()["esformer"])["genotype"] == known.genotype.to_dict()


def test_the_raw_weights_of_a_file_of_averaged_ones(known, tmp_path):
    known.save(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"w\.safetensors holds averaged weights only"):
        open_checkpoint(tmp_path / "w.safetensors").weights(ema=False)


def wrapped(prefix):
    return lambda weights: {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "make",
    [
        dict,
        wrapped("module."),
        wrapped("_orig_mod."),
        wrapped("_orig_mod.module."),
        wrapped("module._orig_mod."),
        lambda weights: {"state_dict": weights, "args": argparse.Namespace(lr=1), "epoch": 3},
        lambda weights: {"model": wrapped("module.")(weights)},
    ],
)
def test_weights_alone_tell_their_network(make, known, tmp_path):
    torch.save(make(known.raw), tmp_path / "w.pth")
    found = open_checkpoint(tmp_path / "w.pth")
    assert (found.genotype, found.num_classes, found.img_size) == (known.genotype, 10, (64, 64))
    assert same(found.raw, known.raw) and found.averaged is None
    assert found.metrics == {}


def test_the_averaged_weights_of_timms_scripts(known, tmp_path):
    torch.save({"state_dict": known.raw, "state_dict_ema": wrapped("module.")(known.averaged)}, tmp_path / "w.pth")
    found = open_checkpoint(tmp_path / "w.pth")
    assert same(found.raw, known.raw) and same(found.averaged, known.averaged)


def test_a_compiled_and_distributed_training(content, known, tmp_path):
    state = {f"model._orig_mod.{name.removeprefix('model.')}": value for name, value in content["state_dict"].items()}
    averaged = wrapped("module.")(content["state_dict_ema"])
    torch.save(content | {"state_dict": state, "state_dict_ema": averaged}, tmp_path / "last.ckpt")
    found = open_checkpoint(tmp_path / "last.ckpt")
    assert same(found.raw, known.raw) and same(found.averaged, known.averaged)


def test_a_safetensors_file_of_weights_alone(known, tmp_path):
    known.save(tmp_path / "w.safetensors")
    save_file(load_file(tmp_path / "w.safetensors"), tmp_path / "w.safetensors")  # without metadata
    assert open_checkpoint(tmp_path / "w.safetensors").genotype == known.genotype


@pytest.mark.parametrize("space", ["S0", "S1", "S2", "S0-extended", "S1-extended", "S2-extended"])
def test_any_genotype_is_read_off_its_weights(space, draw, tmp_path):
    size, _, extended = space.partition("-")
    for seed in range(3):
        genotype = draw(size, seed, bool(extended))
        network = esformer.ESFormer(genotype, num_classes=0, in_chans=2, img_size=96)
        torch.save(network.state_dict(), tmp_path / "w.pth")
        found = open_checkpoint(tmp_path / "w.pth")
        assert (found.num_classes, found.in_chans, found.img_size) == (0, 2, (96, 96))
        other = esformer.ESFormer(found.genotype, num_classes=0, in_chans=2, img_size=96)  # widths of bottlenecks round
        assert [p.shape for p in other.parameters()] == [p.shape for p in network.parameters()]
        assert extended or found.genotype == genotype


def test_a_folder_as_timm_saves_it(known, tmp_path):
    network = esformer.checkpoint.loading.build(known.genotype, num_classes=4, img_size=(64, 96), in_chans=1)
    save_for_hf(network, tmp_path / "a", safe_serialization=True, model_config={"label_names": ["a", "b", "c", "d"]})
    save_for_hf(network, tmp_path / "b", safe_serialization=False)
    for folder in ("a", "b"):
        found = open_checkpoint(tmp_path / folder)
        assert (found.genotype, found.num_classes, found.in_chans) == (known.genotype, 4, 1)
        assert found.img_size == (64, 96) and found.data["crop_pct"] == 0.95
        assert same(found.raw, network.state_dict())
    assert open_checkpoint(tmp_path / "a").data["classes"] == ["a", "b", "c", "d"]


def test_a_folder_of_timms_own_network(tmp_path):
    theirs = timm.create_model("efficientformerv2_s1", num_classes=6)
    save_for_hf(theirs, tmp_path / "f", safe_serialization=True)
    found = open_checkpoint(tmp_path / "f")
    assert found.genotype == Genotype.shipped("efficientformerv2_s1")
    assert found.num_classes == 6 and found.img_size == (224, 224)
    assert torch.equal(found.raw["head.weight"], (theirs.head.weight + theirs.head_dist.weight) / 2)


@pytest.mark.parametrize("stored", sorted(STORED.iterdir()), ids=lambda path: path.name)
def test_checkpoints_of_older_versions(stored, tmp_path):
    """Written by those versions, after a training on the digits; the numbers in them are those of `shrink.py`."""
    path = tmp_path / "last.ckpt"
    path.write_bytes(lzma.decompress(stored.read_bytes()))
    content = torch.load(path, weights_only=True)
    found = open_checkpoint(path)
    assert (found.num_classes, found.in_chans, found.img_size) == (10, 3, (32, 32))
    assert found.recipe["epochs"] == 2 and "pipelines.train" in found.provenance["command"]
    before = content["state_dict_ema" if "state_dict_ema" in content else "ema_state_dict"]
    assert same(found.averaged, before) and same(wrapped("model.")(found.raw), content["state_dict"])
    assert found.averaged["head.bias"][0] != found.raw["head.bias"][0]
    assert esformer.load(path)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_the_stored_ones_are_of_every_format():
    formats = [int(path.name[len("format-") :].partition(".")[0]) for path in STORED.iterdir()]
    assert sorted(formats) == list(range(1, esformer.checkpoint.versions.FORMAT + 1))
