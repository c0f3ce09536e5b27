"""From a file to a network that is ready to use, as it is there or fitted to another purpose."""

import logging

import pytest
import torch
from timm.data import resolve_model_data_config
from torch.testing import assert_close

import esformer
from esformer.checkpoint import CheckpointError
from esformer.data.datasets import IMAGENET_MEAN
from esformer.model.attention import resize_biases


@pytest.fixture
def told(caplog):
    """What was said of a loading."""
    logging.getLogger("esformer").propagate = True
    return lambda: [record.getMessage() for record in caplog.records if record.name == "esformer"]


@torch.no_grad()
def test_averaged_weights_by_default_and_raw_on_request(trained, known, genotype, told):
    image = torch.randn(2, 3, 64, 64)
    for ema, weights in ((True, known.averaged), (False, known.raw)):
        plain = esformer.ESFormer(genotype, num_classes=10, img_size=64)
        plain.load_state_dict(weights)
        network = esformer.load(trained, ema=ema)
        assert not network.training
        assert torch.equal(network(image), plain.eval()(image))
    assert told() == []


def test_images_are_prepared_as_in_the_training(trained):
    config = resolve_model_data_config(esformer.load(trained))
    assert config["input_size"] == (3, 64, 64) and config["crop_pct"] == 0.9 and config["interpolation"] == "bicubic"
    cfg = esformer.load(trained).pretrained_cfg
    assert cfg["num_classes"] == 10 and cfg["label_names"] == tuple("0123456789")


@torch.no_grad()
def test_another_number_of_classes_replaces_the_classifier_alone(trained, known, told):
    network = esformer.load(trained, num_classes=3)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    state = network.state_dict()
    assert {name for name in state if state[name].shape != known.averaged[name].shape} == {"head.weight", "head.bias"}
    assert all(torch.equal(value, known.averaged[name]) for name, value in state.items() if "head" not in name)
    assert "label_names" not in network.pretrained_cfg and network.pretrained_cfg["num_classes"] == 3
    assert 0 < network.head.weight.std() < 0.03 and not network.head.bias.any()
    assert told() == [f"{trained}: a new classifier of 3 classes, in place of the 10 there"]


@torch.no_grad()
def test_no_classifier(trained, told):
    network = esformer.load(trained, num_classes=0)
    image = torch.randn(1, 3, 64, 64)
    whole = esformer.load(trained)
    assert torch.equal(network(image), whole.forward_head(whole.forward_features(image), pre_logits=True))
    assert told() == []


@torch.no_grad()
def test_other_channels_adapt_the_first_convolution_alone(trained, known, told):
    colour = torch.randn(1, 3, 64, 64)
    grey = colour.mean(1, keepdim=True)
    whole = esformer.load(trained)
    network = esformer.load(trained, in_chans=1)
    assert_close(network(grey), whole(grey.expand(1, 3, 64, 64)), rtol=1e-4, atol=1e-4)
    assert told() == [f"{trained}: the first convolution adapted from 3 to 1 channels"]
    config = resolve_model_data_config(network)
    assert config["input_size"] == (1, 64, 64) and config["mean"] == (pytest.approx(sum(IMAGENET_MEAN) / 3),)
    six = esformer.load(trained, in_chans=6)
    assert_close(six(torch.cat([colour, colour], 1)), whole(colour), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_channels_that_are_not_colours_get_a_new_convolution(genotype, tmp_path, told):
    torch.save(esformer.ESFormer(genotype, 10, in_chans=2, img_size=32).state_dict(), tmp_path / "two.pth")
    assert esformer.load(tmp_path / "two.pth", in_chans=5)(torch.zeros(1, 5, 32, 32)).shape == (1, 10)
    assert told() == [f"{tmp_path}/two.pth: a new first convolution for 5 channels, in place of that for 2"]


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 96, 128, (64, 96)])
def test_another_image_size_interpolates_the_biases_alone(size, trained, known, told):
    network = esformer.load(trained, img_size=size)
    height, width = network.img_size
    assert network(torch.zeros(1, 3, height, width)).shape == (1, 10)
    assert resolve_model_data_config(network)["input_size"] == (3, height, width)
    for name, value in network.state_dict().items():
        old = known.averaged[name]
        if "attention_biases" in name:
            stride = 16 if "downsample" in name else 32
            old = resize_biases(old, (64 // stride,) * 2, (height // stride, width // stride))
        assert torch.equal(value, old), name
    assert told() == [f"{trained}: attention biases interpolated for another image size"]


@torch.no_grad()
def test_back_from_a_wide_image(trained, known, tmp_path):
    wide = esformer.load(trained, img_size=(64, 160))
    about = known.describe() | {"img_size": [64, 160]}
    esformer.checkpoint.save_weights(tmp_path / "wide.safetensors", wide.state_dict(), about)
    again = esformer.load(tmp_path / "wide.safetensors")
    image = torch.randn(1, 3, 64, 160)
    assert torch.equal(again(image), wide(image))
    assert esformer.load(tmp_path / "wide.safetensors", img_size=64)(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


@torch.no_grad()
def test_features_at_four_strides(trained, told):
    whole, features = esformer.load(trained), esformer.load(trained, features_only=True)
    image = torch.randn(1, 3, 64, 64)
    assert_close(features(image), whole.forward_intermediates(image, intermediates_only=True))
    assert [f.shape[-2:] for f in features(torch.zeros(1, 3, 128, 96))] == [(32, 24), (16, 12), (8, 6), (4, 3)]
    assert features.feature_info.reduction() == [4, 8, 16, 32]
    last = esformer.load(trained, features_only=True, out_indices=(1, 2))
    assert [f.shape[-1] for f in last(image)] == [8, 4]
    assert told() == []


@torch.no_grad()
def test_features_saved_and_loaded_again(trained, tmp_path):
    features = esformer.load(trained, features_only=True)
    torch.save(features.state_dict(), tmp_path / "backbone.pth")
    again = esformer.load(tmp_path / "backbone.pth", features_only=True)
    image = torch.randn(1, 3, 64, 64)
    assert_close(again(image), features(image))


def test_names(genotype):
    network = esformer.load("esformer_s0", num_classes=5, img_size=64)
    assert network.genotype == esformer.Genotype.shipped("esformer_s0")
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_what_cannot_be_asked_for(trained):
    with pytest.raises(esformer.errors.ESFormerError, match="img_size is 16"):
        esformer.load(trained, img_size=16)
    with pytest.raises(CheckpointError, match="efficientformerv2_s9 is none of timm:efficientformerv2_s0, "):
        esformer.load("timm:efficientformerv2_s9")
