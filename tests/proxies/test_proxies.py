"""What every proxy promises, whatever it measures: its score is a pure function, and leaves no trace."""

import json
import math
import random

import numpy as np
import pytest
import torch
from networks import (
    CLASSES,
    NETWORKS,
    SIZE,
    Attention,
    Encoder,
    OneConv,
    TwoLayers,
    batch,
    classifier,
    plain,
    pooled,
    scrambled,
)
from timm.layers import BatchNormAct2d, LayerScale2d
from torch import nn

from esformer import proxies
from esformer.proxies import Draw, Proxy, ProxyError, score

NAMES = proxies.names()
LAYERS = ("depthwise_macs", "stride4_macs", "stride8_macs", "stride16_macs", "stride32_macs")
COUNTS = ("activations", "macs", "parameters", "sed", *LAYERS)
STOCHASTIC = [name for name in NAMES if name not in (*COUNTS, "dss", "swap")]  # swap is a small whole number
BATCHED = ("grad_norm", "grasp", "naswot", "naswot_without_norms", "swap", "zico")
AZ_NAS = ("az_expressivity", "az_progressivity", "az_trainability")
ENTROPIC = ("entropic_score", "entropic_score_position", "entropic_score_channel", "entropic_score_batch")
WITHOUT_ATTENTION = [name for name in NAMES if name != "dss"]
"""What can score the small networks here."""
LARGE = ("convnext", "vit", "esformer", "resnet")
every_proxy = pytest.mark.parametrize("name", WITHOUT_ATTENTION)


def scored(name, subject, **kwargs):
    return score(name, subject, **({"img_size": SIZE} | batch() | kwargs))


def defined(name, network):
    if name == "meco":
        return network not in ("resnet", "esformer")  # of which a feature map is one position: see below
    if name == "dss":
        return network in ("attention", "encoder", "esformer", "vit")
    if name in AZ_NAS:
        return network not in ("plain", "attention")  # which have a single block
    return name != "sed" or network in ("pooled", "resnet")


def test_proxies_are_reached_by_name_and_state_their_contract():
    assert set(NAMES) == {
        *ENTROPIC,
        *BATCHED,
        *COUNTS,
        *AZ_NAS,
        "log_synflow",
        "synflow",
        "zen_score",
        "zen_score_without_norms",
        "meco",
        "dss",
    }
    for name in NAMES:
        proxy = proxies.get(name)
        assert proxy.name == name and proxy.source and proxy.higher_is_better
        assert proxy.draws == (3 if name.startswith(("entropic", "synflow", "log_synflow")) else 1)
        assert (proxy.needs == "batch") == (name in BATCHED)
        assert (proxy.needs == "genotype") == (name == "sed")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.nightly) if kind in LARGE else kind for kind in NETWORKS]
)
def test_a_network_scores_by_its_architecture_alone(kind):
    build = NETWORKS[kind]
    one, other = build(), scrambled(build()).eval().requires_grad_(False)
    for name in (name for name in NAMES if defined(name, kind)):
        if kind in LARGE and name in (*ENTROPIC[1:], "synflow"):
            continue  # as entropic_score and log_synflow
        expected = scored(name, one)
        assert math.isfinite(expected), name
        assert kind in LARGE or scored(name, one) == expected, name
        if kind != "vit":  # its position embedding stays as it stands
            assert scored(name, other) == expected, name


@pytest.mark.parametrize("name", ["grad_norm", "zen_score", "meco", "naswot"])
def test_the_slope_of_a_prelu_does_not_matter(name):
    def network(slope):
        act = nn.PReLU()
        nn.init.constant_(act.weight, slope)
        return classifier(nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 4, 3), nn.GELU())

    assert scored(name, network(0.1)) == scored(name, network(0.9))


@pytest.mark.parametrize("name", ["grad_norm", "zen_score"])
def test_a_norm_of_whole_images_only_norms(name):
    images = scored(name, classifier(nn.Conv2d(3, 4, 3), nn.LayerNorm((4, 30, 30)), nn.ReLU()))
    channels = scored(name, classifier(nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4), nn.ReLU()))
    assert images == pytest.approx(channels, rel=1e-4)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_another_seed_or_identity_draws_anew(name):
    network = pooled()
    scores = [scored(name, network, **given) for given in ({}, {"seed": 1}, {"identity": "a"}, {"identity": "b"})]
    assert len(set(scores)) == 4
    assert scored(name, network, seed=0, identity="network") == scores[0]


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_depends_on_no_seed(name):
    assert len({scored(name, pooled(), seed=seed, identity=str(seed)) for seed in range(3)}) == 1


PINNED = (0.346516934504678, 0.8073536070401405, 0.6015408957260023)


class Spy(Proxy):
    name, needs, source, draws = "spy", "genotype", "a test", 3

    def __init__(self):
        self.seen = []

    def measure(self, subject, draw):
        assert draw.image_shape[0] == 3
        self.seen.append(torch.rand((), generator=draw.generator, dtype=torch.float64).item())
        return self.seen[-1]


def test_a_score_is_the_mean_of_draws_that_follow_from_its_arguments(draw):
    def seen(*args, name="spy", **kwargs):
        spy = Spy()
        spy.name = name
        assert score(spy, *args, **kwargs) == pytest.approx(sum(spy.seen) / 3)
        assert len(set(spy.seen)) == 3
        return tuple(spy.seen)

    g = draw()
    assert seen(g) == seen(g, seed=0, img_size=224) == seen(g, img_size=(224, 224)) == seen(g, identity="genotype")
    assert seen(g) == seen(draw(seed=3)) == seen(draw("S2"))  # genotypes are compared on the same input
    others = [seen(g), seen(g, seed=1), seen(g, img_size=32), seen(g, img_size=(32, 224)), seen(g, img_size=(224, 32))]
    assert len({*others, seen(plain()), seen(g, identity="mine"), seen(g, name="other")}) == 8
    # as they were drawn for the figures in docs/results/guides.md
    assert seen(plain()) == seen(pooled(), identity="network") == PINNED


def test_fewer_draws_are_the_first_of_more():
    def seen(draws):
        score(spy := Spy(), plain(), draws=draws)
        return spy.seen

    assert seen(5)[:1] == seen(1) and seen(5)[:3] == seen(3) == seen(None) and len(seen(5)) == 5
    for none in (0, -1):
        with pytest.raises(ProxyError, match="at least 1"):
            seen(none)


def test_the_size_of_the_images_counts_if_a_proxy_needs_them():
    assert len({score("naswot", plain(), img_size=size, **batch(size=24)) for size in (24, 32)}) == 1
    assert len({score("zen_score", plain(), img_size=size, **batch(size=24)) for size in (24, 32)}) == 2


FRESH = """
import json, random, sys, torch
torch.set_num_threads(2), torch.manual_seed(7), random.seed(8)
sys.path.insert(0, {folder!r})
from networks import SIZE, batch, pooled
from esformer import SearchSpace, score
genotype = SearchSpace.for_size("S0").sample(random.Random(1))
print(json.dumps([score(name, what, seed=4, img_size=(SIZE, 40), **batch(size=SIZE))
                  for name, kind in {asked} for what in [genotype if kind else pooled()]]))
"""


@pytest.mark.nightly
def test_scores_are_the_same_in_any_order_under_any_global_seed_and_in_any_process(draw, fresh_process, request):
    on_genotypes = ("entropic_score", "log_synflow", "synflow", "naswot", "zen_score", "grad_norm", "dss")
    asked = [(name, False) for name in WITHOUT_ATTENTION] + [(name, True) for name in on_genotypes]

    def ask(pairs):
        subjects = [draw(seed=1) if kind else pooled() for _, kind in pairs]
        values = [scored(name, s, seed=4, img_size=(SIZE, 40)) for (name, _), s in zip(pairs, subjects, strict=True)]
        return dict(zip(pairs, values, strict=True))

    expected = ask(asked)
    torch.manual_seed(99)
    random.seed(99)
    assert ask(asked[::-1]) == expected
    code = FRESH.format(folder=str(request.path.parent), asked=asked[::-1])
    printed = json.loads(fresh_process("-W", "ignore", "-c", code, PYTHONHASHSEED="3"))
    assert printed == [expected[pair] for pair in asked[::-1]]  # to the last bit, with other threads too


@every_proxy
def test_the_default_dtype_does_not_matter(name):
    network, data = pooled(), batch()
    expected = score(name, network, img_size=SIZE, **data)
    torch.set_default_dtype(torch.float64)
    try:
        assert score(name, network, img_size=SIZE, **data) == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.backends.mha.set_fastpath_enabled(True)
    yield
    torch.set_num_threads(before)


@every_proxy
def test_scoring_leaves_no_trace(three_threads, name):
    network = pooled(inplace=True, act=nn.ReLU)
    network.register_forward_hook(lambda *_: None)
    network[1].eval()
    network[4].weight.requires_grad_(False)
    data = batch()
    network(data["images"]).sum().backward()
    parts = list(network.modules())

    def state():
        tensors = [*network.state_dict().values(), *data.values()]
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        return (
            [tensor.tolist() for tensor in (*tensors, *gradients)],
            [(id(p), p.requires_grad, p.dtype) for p in network.parameters()],
            [(id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()],
            (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),  # noqa: NPY002
            (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
            (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()),
        )

    before = state()
    score(name, network, img_size=SIZE, **data)
    assert state() == before and list(network.modules()) == parts
    proxy = proxies.get(name)
    broken = Broken(proxy.needs, proxy.dtype)
    with pytest.raises(ProxyError):
        score(broken, network, img_size=SIZE, **data)
    assert state() == before


class Broken(Proxy):
    name, source = "broken", "a test"

    def __init__(self, needs, dtype):
        self.needs, self.dtype = needs, dtype

    def measure(self, subject, draw):
        torch.rand(3)
        raise RuntimeError("on purpose")


@every_proxy
def test_activations_that_work_in_place_change_nothing(name):
    assert scored(name, pooled(nn.ReLU, inplace=True)) == scored(name, pooled(nn.ReLU))


@pytest.mark.parametrize("name", sorted({*STOCHASTIC} - {*AZ_NAS}))
def test_layer_scale_hides_no_branch(name):
    def network(scale):
        return classifier(nn.Conv2d(3, 4, 3), scale, nn.GELU())

    assert scored(name, network(LayerScale2d(4, 1e-5))) == scored(name, network(nn.Identity()))


@every_proxy
def test_dropout_adds_no_chance(name):
    def network(p):
        return classifier(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(p), nn.Conv2d(4, 4, 3), nn.RReLU())

    assert scored(name, network(0.9).train()) == scored(name, network(0.0).eval())


@pytest.mark.parametrize("name", ["grad_norm", "naswot", "zen_score"])
def test_dropout_within_a_norm_adds_no_chance(name):
    def network(p):
        return classifier(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, drop_layer=lambda *_: nn.Dropout(p)))

    assert scored(name, network(0.5)) == scored(name, network(0.0))


@pytest.mark.parametrize("name", sorted({*NAMES} - {"sed", *AZ_NAS}))
def test_the_mode_of_a_network_does_not_matter(name):
    for build in (Attention, Encoder):
        with torch.no_grad():
            expected = scored(name, build().eval())
        assert scored(name, build().train()) == expected


@pytest.mark.parametrize("name", sorted({*NAMES} - {"sed", "meco", "dss"}))
def test_an_activation_shared_by_two_layers_counts_twice(name):
    def network(second):
        first = nn.GELU()
        return classifier(nn.Conv2d(3, 4, 3), first, nn.Conv2d(4, 4, 3), second or first)

    assert scored(name, network(None)) == scored(name, network(nn.GELU()))


def test_proxies_see_activations_of_every_kind_but_no_softmax():
    kinds = nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.PReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Mish
    assert len({scored("entropic_score", plain(kind)) for kind in kinds}) == 1
    assert {scored("activations", plain(kind)) for kind in kinds} == {1}
    signs = {scored("naswot", plain(kind)) for kind in kinds}
    assert signs == {scored("naswot", plain(nn.Hardsigmoid, inplace=True))}  # of what goes in
    for name in (*ENTROPIC, "activations", "naswot"):
        with pytest.raises(ProxyError, match="activation"):
            scored(name, classifier(nn.Conv2d(3, 4, 3), nn.Softmax(1)))


def test_a_measurement_uses_nothing_but_its_draw():
    for name in STOCHASTIC:
        proxy, data = proxies.get(name), batch()

        def measure(seed, proxy=proxy, data=data):
            network = TwoLayers() if proxy.needs != "batch" else pooled()
            generator = torch.Generator().manual_seed(seed)
            images = data["images"].to(proxy.dtype)
            return proxy.measure(network.to(proxy.dtype), Draw(generator, (3, SIZE, SIZE), images, data["labels"]))

        assert measure(5) == measure(5) != measure(6), name


def test_a_network_with_one_layer_is_enough():
    for name in ("entropic_score", "log_synflow", "synflow", "zen_score", "meco", "naswot", "activations"):
        assert math.isfinite(scored(name, OneConv()))
    assert scored("parameters", OneConv()) == 4 * 27 + 4 and CLASSES == 3
