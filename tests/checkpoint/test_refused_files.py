"""What is no ESFormer, or not the one that it says, is refused in one sentence, and nothing in it is executed."""

import json
import os
import pickle
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file

import esformer
from esformer.checkpoint import CheckpointError, open_checkpoint
from esformer.errors import ESFormerError


class Code:
    """What a pickle can do to whoever opens it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def contiguous(weights):
    return {name: value.contiguous() for name, value in weights.items()}


def refused(path, match, by=(open_checkpoint, esformer.load)):
    for opened in by:
        with pytest.raises(CheckpointError) as caught:
            opened(path)
        text = str(caught.value)
        assert text.startswith(str(path)) and "\n" not in text and len(text) < 500, text
        assert match in text, text


@pytest.fixture
def write(tmp_path):
    def write(value, name="w.ckpt"):
        torch.save(value, tmp_path / name)
        return tmp_path / name

    return write


def test_missing(tmp_path):
    for name in ("none.ckpt", "none.safetensors", "none/last.ckpt"):
        with pytest.raises(CheckpointError, match=f"{name} does not exist"):
            open_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="neither a file nor one of .*efficientformerv2_s0.*timm:"):
        esformer.load("esformer_s9")


def test_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")  # reading it would wait for ever
    with pytest.raises(CheckpointError, match=r"pipe\.ckpt is not a file"):
        open_checkpoint(tmp_path / "pipe.ckpt")


@pytest.mark.parametrize("name", ["w.ckpt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("text", [b"", b"weights", b"\x80\x02}", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 100])
def test_text_and_rubbish(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=rf"{name}( is damaged, or is no|: it holds no weights of an ESFormer)"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.5, 0.9999])
def test_truncated(share, trained, known, tmp_path):
    known.save(tmp_path / "whole.safetensors")
    for whole, name in ((trained, "w.ckpt"), (tmp_path / "whole.safetensors", "w.safetensors")):
        content = whole.read_bytes()
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
            open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("protocol", [None, 0, 2, 4])
def test_code_is_not_executed(protocol, write, tmp_path):
    bomb = {"state_dict": {}, "hyper_parameters": Code(tmp_path / "ran")}
    if protocol is None:
        path = write(bomb)
    else:
        path = tmp_path / "w.ckpt"
        path.write_bytes(pickle.dumps(bomb, protocol))
    refused(path, "")
    assert not (tmp_path / "ran").exists()


def test_code_is_named(write, tmp_path):
    refused(write({"x": Code(tmp_path / "ran")}), "is not opened, because it holds code or objects (posix.system)")
    refused(write({"x": esformer.Genotype.shipped("esformer_s0")}), "esformer.genotype.Genotype")


def test_a_zip_that_is_none_of_pytorchs(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.ckpt", "w") as file:
        file.writestr("data.txt", "x")
    refused(tmp_path / "w.ckpt", "is damaged, or is no file of weights")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([1, 2], "holds no weights but a list"),
        ({}, "it holds no weights of an ESFormer but nothing"),
        ({"state_dict": {}}, "it holds no weights of an ESFormer"),
        ({"state_dict": [1]}, "is not as this or an earlier version of esformer writes it"),
        ({"a": 1, 2: 3}, "it holds no weights of an ESFormer but 'a', 2"),
        ({"hyper_parameters": {}, "state_dict": {}}, "is not a checkpoint of an ESFormer's training"),
        ({"hyper_parameters": 7}, "is not a checkpoint of an ESFormer's training"),
    ],
)
def test_something_else(value, match, write):
    refused(write(value), match)


def test_another_architecture(write):
    refused(write(timm.create_model("resnet18", num_classes=2).state_dict()), "it holds no weights of an ESFormer but")
    large = timm.create_model("efficientformerv2_l", num_classes=2)
    refused(write(large.state_dict()), "it holds a network of no known size: its stages have 5 blocks")
    wide = timm.create_model("efficientformerv2_s0", num_classes=2, embed_dims=(56, 64, 96, 176))
    refused(write(wide.state_dict()), "in no search space: stage 1, block 1: out is 56; space S0 allows 16, 24, 32")


def changed(content, **genes):
    """The checkpoint with other genes of stage 2, block 2 in its genotype."""
    settings = json.loads(json.dumps(content["hyper_parameters"]))
    settings["genotype"]["stages"][1][1] |= genes
    return content | {"hyper_parameters": settings}


def test_a_genotype_that_is_not_that_of_the_weights(content, write):
    start = "its weights are not of its genotype: stage 2, block 2: "
    for genes, match in (
        ({"kernel": 7}, "kernel is 7 in the genotype and 5 in the weights"),
        ({"ffn": "ibn"}, "ffn is ibn in the genotype and convnext in the weights"),
        ({"ratio": 6}, "ratio is 6 in the genotype and 2 in the weights"),
        ({"out": 40}, "out is 40 in the genotype and 32 in the weights"),
    ):
        with pytest.raises(CheckpointError, match=start + match):
            open_checkpoint(write(changed(content, **genes)))
    for genes in ({"kernel": 4}, {"kernel": None}, {"out": 8}, {"wings": 2}):
        with pytest.raises(CheckpointError, match="stage 2, block 2"):
            open_checkpoint(write(changed(content, **genes)))


def test_raw_weights_of_another_genotype(content, genotype, write, draw):
    other = esformer.ESFormer(draw(), num_classes=10, img_size=64).state_dict()
    with pytest.raises(CheckpointError, match="its weights are not of its genotype: .*; and [0-9]+ more$"):
        open_checkpoint(write(content | {"state_dict": {f"model.{name}": value for name, value in other.items()}}))


def test_a_network_of_another_genotype_says_so_by_block(trained):
    with pytest.raises(ESFormerError, match="stage 1, block 1: kernel is . in the genotype and 3 in the weights"):
        timm.create_model("esformer_s0", num_classes=10, img_size=64, checkpoint_path=str(trained))


def test_attention_that_is_not_that_of_the_weights(content, write):
    settings = json.loads(json.dumps(content["hyper_parameters"]))
    settings["genotype"]["stages"][2][5] |= {"heads": 8, "head_dim": 24}
    with pytest.raises(
        CheckpointError, match="stage 3, block 6: heads is 8 .* 4 in the weights; .*head_dim is 24 .* 16"
    ):
        open_checkpoint(write(content | {"hyper_parameters": settings}))


def test_an_image_size_that_is_not_that_of_the_weights(content, write):
    for size in (32, (64, 96), 10**9, "64", None, (64,)):
        with pytest.raises(
            CheckpointError,
            match="positions, which are not those of|is not as this or an earlier version|whole numbers of 32",
        ):
            open_checkpoint(write(content | {"hyper_parameters": content["hyper_parameters"] | {"img_size": size}}))


NAME = "stages.0.blocks.1.mlp.fc1.conv.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.pop(NAME), f"{NAME} is missing"),
        (lambda w: w.update({NAME: w[NAME].flatten()}), f"{NAME} is missing or no convolution"),
        (
            lambda w: w.update({"stages.0.blocks.1.ls2.gamma": torch.ones(3)}),
            "stage 1, block 2: .*gamma is 3 there and 16",
        ),
        (lambda w: w.pop("norm.running_var"), "norm.running_var is missing there and 88 in this network"),
        (
            lambda w: w.update({"stages.0.blocks.1.extra": torch.ones(2)}),
            "stage 1, block 2: .*extra is 2 there and missing",
        ),
        (
            lambda w: w.update({"stages.3.blocks.2.token_mixer.attention_biases": torch.ones(4, 3)}),
            "is for 3 positions",
        ),
    ],
)
def test_wrong_weights(change, match, known, content, write):
    weights = dict(known.raw)
    change(weights)
    state = {f"model.{name}": value for name, value in weights.items()}
    for value in (weights, content | {"state_dict": state, "state_dict_ema": weights}):
        with pytest.raises(CheckpointError, match=match):
            esformer.load(write(value), ema=False)


def test_weights_for_images_that_are_not_square(known, content, write):
    weights = known.raw | {"stages.3.downsample.attn.attention_biases": torch.ones(8, 15)}
    with pytest.raises(CheckpointError, match="does not say for images of what height and width"):
        open_checkpoint(write(weights))
    state = {f"model.{name}": value for name, value in weights.items()}
    with pytest.raises(CheckpointError, match="is for 15 positions, which are not those of images of 64 x 64 pixels"):
        open_checkpoint(write(content | {"state_dict": state, "state_dict_ema": weights}))
    with pytest.raises(CheckpointError, match="its raw and its averaged weights are of different networks"):
        open_checkpoint(write(content | {"state_dict": state}))


def test_a_newer_format(content, write):
    newer = content | {"hyper_parameters": content["hyper_parameters"] | {"format": 9}}
    refused(write(newer), "is of format 9, and 1 to 3 are known here: update esformer")
    for number in (0, -1, True, "3", None):
        refused(write(content | {"hyper_parameters": content["hyper_parameters"] | {"format": number}}), "is of format")


def test_tensors_that_are_larger_than_the_file(known, write):
    path = write(known.raw | {"stages.3.downsample.attn.attention_biases": torch.zeros(1).expand(8, 400 * 400)})
    refused(path, "it holds no weights of an ESFormer")
    refused(write(known.raw | {"head.weight": torch.zeros(10, 88).to_sparse()}), "it holds no weights of an ESFormer")


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"data": "abc"}, "data"),
        ({"metrics": {"val/ema_top1": "x"}}, "metrics"),
        ({"provenance": [1]}, "provenance"),
        ({"recipe": 3}, "recipe"),
        ({"version": 3}, "version"),
        ({"data": {"mean": []}}, "data.mean"),
        ({"data": {"std": [1, "2", 3]}}, "data.std"),
        ({"data": {"crop_pct": "all"}}, "data.crop_pct"),
        ({"data": {"classes": 5}}, "data.classes"),
        ({"data": {"classes": ["a", "b"]}}, "data.classes"),
        ({"data": {"classes": list(range(10))}}, "data.classes"),
        ({"provenance": {"found": torch.zeros(1)}}, "provenance"),
    ],
)
def test_what_cannot_be_of_the_weights(said, wrong, content, write):
    settings = content["hyper_parameters"] | said
    path = write(content | {"hyper_parameters": settings} | said)
    refused(path, f"says what cannot be of its weights: {wrong} is ")


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ("{", "is not as this or an earlier version of esformer writes it"),
        ("[]", "is not as this or an earlier version of esformer writes it"),
        ("{}", "is not as this or an earlier version of esformer writes it"),
        ('{"format": 9}', "is of format 9, and 1 to 3 are known here"),
        ('{"format": 3, "weights": "raw", "genotype": {}}', "the genotype: lacks 'genotype'"),
    ],
)
def test_damaged_metadata(metadata, match, known, tmp_path):
    save_file(contiguous(known.raw), tmp_path / "w.safetensors", metadata={"esformer": metadata})
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(tmp_path / "w.safetensors")


def test_folders(known, trained, tmp_path):
    with pytest.raises(CheckpointError, match="holds neither model.safetensors nor pytorch_model.bin$"):
        open_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"it is a run's folder, whose weights are .*checkpoints/last\.ckpt"):
        open_checkpoint(tmp_path)
    save_file(contiguous(known.raw), tmp_path / "model.safetensors")
    for text, match in (
        ("{", r"config\.json is not JSON"),
        ('{"pretrained_cfg": 3}', "is not as this"),
        ("[]", "is not"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=match):
            open_checkpoint(tmp_path)
