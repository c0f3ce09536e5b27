import json

import pytest
import timm
import torch
from torch.testing import assert_close

import esformer.model.registry  # noqa: F401 (registers the names)
from esformer.choices import size_of
from esformer.errors import ESFormerError
from esformer.genotype import Genotype, GenotypeError
from esformer.model.cost import Budget, cost
from esformer.model.esformer import ESFormer

NAMES = ("esformer_s0", "esformer_s0_paper", "esformer_s1", "esformer_s2")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def size(name):
    return name.split("_")[1].upper()


def test_the_names_are_timms():
    assert timm.list_models("esformer_*") == list(NAMES)
    assert all(timm.is_model(name) for name in NAMES)


def test_a_shipped_name_builds_its_genotype(name):
    network = timm.create_model(name, pretrained=False).eval()
    assert isinstance(network, ESFormer)
    assert network.genotype == Genotype.shipped(name) and network.genotype.space == size(name)
    assert network.img_size == (224, 224) and network.num_classes == 1000
    assert sum(p.numel() for p in network.parameters()) == cost(network.genotype).params
    assert network.default_cfg["first_conv"] == "stem.conv1.conv" and network.default_cfg["classifier"] == "head"
    assert isinstance(network.get_submodule("stem.conv1.conv"), torch.nn.Conv2d)


def test_a_shipped_genotype_keeps_the_papers_budget(name):
    assert Budget.for_size(size(name)).allows(cost(Genotype.shipped(name)))


def test_what_the_default_search_found_keeps_to_the_macs_too():
    assert cost(Genotype.shipped("esformer_s0")).macs <= size_of("S0").macs
    assert cost(Genotype.shipped("esformer_s0_paper")).macs > size_of("S0").macs


@torch.no_grad()
def test_timms_arguments(name, tmp_path):
    network = timm.create_model(name, num_classes=5, in_chans=1, img_size=64, drop_path_rate=0.1).eval()
    image = torch.randn(1, 1, 64, 64)
    assert network(image).shape == (1, 5)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    loaded = timm.create_model(
        name, num_classes=5, in_chans=1, img_size=64, checkpoint_path=str(tmp_path / "weights.pt")
    )
    assert_close(loaded.eval()(image), network(image))


@torch.no_grad()
def test_features_only(name):
    whole = timm.create_model(name, img_size=64).eval()
    image = torch.randn(1, 3, 64, 64)
    for out_indices in ((0, 1, 2, 3), (1, 3)):
        features = timm.create_model(name, img_size=64, features_only=True, out_indices=out_indices).eval()
        weights = zip(features.state_dict(), whole.state_dict().values(), strict=False)  # other names, the same order
        features.load_state_dict(dict(weights))
        wanted = whole.forward_intermediates(image, list(out_indices), intermediates_only=True)
        assert_close(features(image), wanted)
        assert features.feature_info.channels() == [taken.shape[1] for taken in wanted]


def test_another_genotype_under_a_registered_name(draw):
    network = timm.create_model("esformer_s0", genotype=draw("S0", seed=9), img_size=32, num_classes=3)
    assert network.genotype == draw("S0", seed=9)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("settings", [{}, {"features_only": True}, {"dynamic_img_size": True}, {"num_classes": 0}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_timms_factory_arguments(settings, dtype):
    settings = {"img_size": 64, "dtype": dtype, **settings}
    empty = timm.create_model("esformer_s0", device="meta", **settings)
    network = timm.create_model("esformer_s0", device="cpu", **settings).eval()
    for built, device in ((empty, "meta"), (network, "cpu")):
        tensors = [*built.parameters(), *built.buffers()]
        assert {value.device.type for value in tensors} == {device}
        assert {value.dtype for value in tensors if value.is_floating_point()} == {dtype}
        built(torch.zeros(2, 3, 64, 64, device=device, dtype=dtype))


@torch.no_grad()
def test_a_network_from_the_meta_device_is_filled_as_timms_are():
    whole = timm.create_model("esformer_s0", img_size=64).eval()
    filled = timm.create_model("esformer_s0", img_size=64, device="meta").eval().to_empty(device="cpu")
    for module in filled.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    filled.load_state_dict(whole.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(filled(image), whole(image))


@pytest.mark.parametrize("genotype", ["/etc/passwd", "genotype.yaml", 3, ["a"]])
def test_a_folders_genotype_is_never_a_path(genotype, tmp_path):
    config = {"architecture": "esformer_s0", "num_classes": 3, "pretrained_cfg": {}}
    config["model_args"] = {"genotype": genotype}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "genotype.yaml").write_text("secret: words")
    with pytest.raises(GenotypeError, match="the genotype of a saved model is no dictionary") as caught:
        timm.create_model(f"local-dir:{tmp_path}", pretrained=False)
    assert "root" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_callers_genotype_may_be_a_path(tmp_path):
    Genotype.shipped("esformer_s0").save(tmp_path / "mine.yaml")
    for path in (tmp_path / "mine.yaml", str(tmp_path / "mine.yaml")):
        network = timm.create_model("esformer_s0", genotype=path, img_size=32, device="meta")
        assert network.genotype == Genotype.shipped("esformer_s0")


@pytest.mark.parametrize(
    "odd", [{"std": (0, 0, 0)}, {"mean": (float("nan"),) * 3}, {"mean": {}}, {"crop_pct": -1}, {"interpolation": "odd"}]
)
def test_a_preparation_that_cannot_be_is_refused_by_timms_function_too(odd):
    with pytest.raises(ESFormerError, match=f"{next(iter(odd))} is .*; it must be"):
        timm.create_model("esformer_s0", pretrained_cfg_overlay=odd)
