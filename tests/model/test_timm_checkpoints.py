"""Weights of ours opened by timm's own means: create_model(checkpoint_path=...) and folders; and timm's by ours."""

import itertools
import json
import logging

import pytest
import timm
import torch
import torch.nn.utils.prune as prune
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch.testing import assert_close

import esformer
from esformer.checkpoint.loading import build
from esformer.genotype import Genotype
from esformer.model.weights import WeightsError, clean, origin


@pytest.fixture
def told(caplog):
    """What was said of a loading."""
    logging.getLogger("esformer").propagate = True
    return lambda: [record.getMessage() for record in caplog.records if record.name == "esformer"]


@pytest.fixture
def genotype(draw):
    return draw("S0", seed=4)


@pytest.fixture
def trained(genotype, randomise):
    return randomise(build(genotype, num_classes=7, img_size=64))


@pytest.fixture(params=["last.ckpt", "model.safetensors", "weights.pt", "compiled.pt"])
def file(request, trained, tmp_path):
    path, state = tmp_path / request.param, trained.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".ckpt":  # as the training writes it: raw, and averaged
        raw = {f"model.{name}": torch.zeros_like(value) for name, value in state.items()}
        torch.save({"state_dict": raw, "state_dict_ema": state}, path)
    else:
        torch.save({f"_orig_mod.{name}" if "compiled" in path.stem else name: w for name, w in state.items()}, path)
    return path


def create(genotype, file, **kwargs):
    return timm.create_model("esformer_s0", genotype=genotype, checkpoint_path=file, **kwargs).eval()


@torch.no_grad()
def test_every_kind_of_file(genotype, file, trained, told):
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(create(genotype, file, num_classes=7, img_size=64)(image), trained(image))
    features = create(genotype, file, img_size=64, features_only=True)
    assert_close(features(image), trained.forward_intermediates(image, intermediates_only=True))
    assert told() == []


@pytest.mark.parametrize(("classes", "channels", "size"), [*itertools.product([7, 3, 0], [3, 1], [64, (96, 64)])])
@torch.no_grad()
def test_every_combination(genotype, trained, tmp_path, told, classes, channels, size):
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    asked = dict(num_classes=classes, in_chans=channels, img_size=size)
    network, features = (create(genotype, tmp_path / "w.pt", **asked, **more) for more in ({}, {"features_only": True}))
    words = ["the first convolution adapted from 3 to 1 channels"] * (channels == 1)
    words += ["attention biases interpolated for another image size"] * (size != 64)
    head = ["a new classifier of 3 classes, in place of the 7 there"] * (classes == 3)
    assert told() == [f"weights loaded: {'; '.join(some)}" for some in (words + head, words) if some]

    image = torch.randn(2, channels, *([size] * 2 if size == 64 else size))
    follows = esformer.ESFormer(genotype, num_classes=7, img_size=64, dynamic_img_size=True).eval()
    follows.load_state_dict(trained.state_dict())
    gray = image.expand(-1, 3, -1, -1)  # timm's rule for one channel is the sum over the colours
    taken = follows.forward_intermediates(gray, intermediates_only=True)
    assert_close(network.forward_intermediates(image, intermediates_only=True), taken, rtol=1e-4, atol=1e-4)
    assert_close(features(image), taken, rtol=1e-4, atol=1e-4)
    assert network(image).shape == (2, classes or network.num_features)
    if classes == 7:
        assert_close(network(image), follows(gray), rtol=1e-4, atol=1e-4)
    assert resolve_model_data_config(network)["input_size"] == image.shape[1:]


@pytest.mark.parametrize("give", [lambda g, path: g, lambda g, path: g.to_dict(), lambda g, path: path])
def test_a_genotype_is_given_in_any_form(give, genotype, tmp_path):
    genotype.save(tmp_path / "g.yaml")
    network = timm.create_model("esformer_s0", genotype=give(genotype, tmp_path / "g.yaml"), img_size=32)
    assert network.genotype == genotype


@pytest.mark.parametrize("give", [lambda g, path: g, lambda g, path: path, None])
@torch.no_grad()
def test_a_saved_folder_needs_nothing_else(give, genotype, tmp_path):
    genotype.save(tmp_path / "g.yaml")
    asked = {"genotype": give(genotype, tmp_path / "g.yaml")} if give else {}
    network = timm.create_model("esformer_s0", img_size=32, num_classes=3, drop_path_rate=0.1, **asked).eval()
    save_for_hf(network, tmp_path / "saved")
    (tmp_path / "g.yaml").unlink()
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert Genotype.from_dict(config["model_args"]["genotype"]) == network.genotype
    again = timm.create_model(f"local-dir:{tmp_path}/saved", pretrained=True).eval()
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(image), network(image))


def test_weights_of_another_network_say_what_to_do(genotype, trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    for kwargs in ({}, {"features_only": True}):
        with pytest.raises(WeightsError, match=r"^its weights are not of its .* stage 1, block 1: .*esformer.load"):
            timm.create_model("esformer_s0", checkpoint_path=tmp_path / "w.pt", **kwargs)
    with pytest.raises(WeightsError, match=r"stage 1 has 3 blocks .* and 2 in the weights.*genotype=\.\.\."):
        timm.create_model("esformer_s1", checkpoint_path=tmp_path / "w.pt")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "r.pt")
    with pytest.raises(WeightsError, match="^it holds no weights of an ESFormer but 'conv1.0.weight'"):
        timm.create_model("esformer_s0", checkpoint_path=tmp_path / "r.pt")


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_folder_there_and_back(trained, genotype, tmp_path):
    preparation = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.9, interpolation="bilinear")
    network = build(genotype, num_classes=7, img_size=64, pretrained_cfg_overlay=preparation).eval()
    network.load_state_dict(trained.state_dict())
    save_for_hf(network, tmp_path)
    name, image = f"local-dir:{tmp_path}", torch.randn(2, 3, 64, 64)
    again = timm.create_model(name, pretrained=True).eval()
    assert again.genotype == genotype and torch.equal(again(image), trained(image))
    config = resolve_model_data_config(again)
    assert {word: config[word] for word in preparation} == {
        word: list(value) if isinstance(value, tuple) else value for word, value in preparation.items()
    }
    assert config["input_size"] == (3, 64, 64)
    assert torch.equal(esformer.load(tmp_path)(image), trained(image))
    assert not torch.equal(timm.create_model(name).eval()(image), trained(image))

    taken = trained.forward_intermediates(image, intermediates_only=True)
    assert_close(timm.create_model(name, pretrained=True, features_only=True).eval()(image), taken)
    bare = timm.create_model(name, pretrained=True, num_classes=0).eval()
    assert_close(bare(image), trained.forward_head(trained.forward_features(image), pre_logits=True))
    other = timm.create_model(name, pretrained=True, num_classes=3, in_chans=1, img_size=(64, 96)).eval()
    follows = timm.create_model(name, pretrained=True, dynamic_img_size=True).eval()
    wide = torch.randn(1, 1, 64, 96)
    assert other(wide).shape == (1, 3) and other.img_size == (64, 96)
    expected = follows.forward_features(wide.expand(-1, 3, -1, -1))
    assert_close(other.forward_features(wide), expected, rtol=1e-4, atol=1e-4)

    save_for_hf(other, tmp_path / "other")  # another network by now
    once_more = timm.create_model(f"local-dir:{tmp_path}/other", pretrained=True).eval()
    for network in (once_more, esformer.load(tmp_path / "other")):
        assert torch.equal(network(wide), other(wide))


FROM_TIMM = """
import sys, time, torch, timm, esformer

theirs = timm.create_model("efficientformerv2_s0", pretrained=True).eval()
x = torch.randn(1, 3, 224, 224)
for name in ("timm:efficientformerv2_s0", "timm:efficientformerv2_s0.snap_dist_in1k"):
    ours = esformer.load(name)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
assert ours(x).std() > 1e-3
assert ours.genotype == esformer.Genotype.shipped("efficientformerv2_s0")
assert ours.pretrained_cfg["mean"] == theirs.pretrained_cfg["mean"] and not ours.training
assert esformer.load(name, num_classes=5, img_size=64)(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
for name in sys.argv[1:]:
    start = time.monotonic()
    try:
        esformer.load(name)
    except esformer.checkpoint.CheckpointError as error:
        print(error)
    assert time.monotonic() - start < 10
"""


@pytest.mark.nightly
def test_timms_weights_come_from_its_cache_without_a_network(fresh_process, tmp_path, randomise):
    network = randomise(timm.create_model("efficientformerv2_s0"))
    cache = tmp_path / "models--timm--efficientformerv2_s0.snap_dist_in1k"
    for folder in ("refs", "snapshots/1234"):
        (cache / folder).mkdir(parents=True)
    (cache / "refs/main").write_text("1234")
    save_file(network.state_dict(), cache / "snapshots/1234/model.safetensors")
    (tmp_path / "load.py").write_text(FROM_TIMM)
    wrong = ["nothing", "resnet18", "efficientformerv2_l", "efficientformerv2_s0.nope", "efficientformerv2_s1"]
    # a port where nobody listens is no network; nothing waits for it
    nowhere = dict(HF_HUB_CACHE=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    said = fresh_process(tmp_path / "load.py", *(f"timm:{name}" for name in wrong), **nowhere).splitlines()
    known = ", ".join(f"timm:efficientformerv2_s{i}" for i in range(3))
    assert said[:3] == [f"timm:{name} is none of {known}" for name in wrong[:3]]
    assert said[3] == (
        "timm could not load the weights of efficientformerv2_s0.nope: "
        "Invalid pretrained tag (nope) for efficientformerv2_s0."
    )
    assert said[4].startswith("timm could not load the weights of efficientformerv2_s1: ") and "refused" in said[4]


def test_timms_weights_name_the_genotype_of_each_size(randomise):
    for size in ("s0", "s1", "s2"):
        theirs = timm.create_model(f"efficientformerv2_{size}")
        assert origin(clean(theirs.state_dict())).genotype == Genotype.shipped(f"efficientformerv2_{size}")


def test_parts_of_weights_and_changed_networks_load_as_in_any_network(genotype):
    network = timm.create_model("esformer_s0", genotype=genotype, num_classes=7, img_size=32)
    state = network.state_dict()
    stem = {name: torch.full_like(value, 0.5) for name, value in state.items() if name.startswith("stem.")}
    missing = network.load_state_dict(stem, strict=False)
    assert "head.weight" in missing.missing_keys and not stem.keys() & missing.missing_keys
    assert network.stem.conv1.conv.weight.eq(0.5).all()
    with pytest.raises(RuntimeError, match="Missing key.*head.weight"):
        network.load_state_dict({name: value for name, value in state.items() if name != "head.weight"})
    with pytest.raises(WeightsError, match="extra.weight is 1 there and missing in this network"):
        network.load_state_dict(state | {"extra.weight": torch.ones(1)})
    prune.l1_unstructured(network.head, "weight", 0.5)
    pruned = network.state_dict()
    assert "head.weight_orig" in pruned
    network.load_state_dict(pruned)


def test_a_classifier_is_replaced_as_a_whole(genotype):
    network = timm.create_model("esformer_s0", genotype=genotype, num_classes=7, img_size=32)
    state = network.state_dict() | {"head.weight": torch.ones(9, 5), "head.bias": torch.ones(7)}
    network.load_state_dict(state)
    assert not network.head.bias.any() and network.head.weight.std() < 0.03
