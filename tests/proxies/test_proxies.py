import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from esformer import proxies
from esformer.model.esformer import ESFormer
from esformer.proxies import Draw, Proxy, ProxyError, score
from esformer.proxies.entropic_score import EntropicScore
from esformer.proxies.log_synflow import LogSynflow
from esformer.space import SearchSpace

NAMES = ("entropic_score", "log_synflow")
SHAPE = (3, 8, 8)


class OneConv(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU())


class TwoLayers(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.GELU()
        )


class Gated(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.GLU(dim=1), nn.Conv2d(4, 4, 1), nn.GELU())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.act = nn.Conv2d(3, 8, 2, 2), nn.GELU()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.act(self.attention(x, x, x)[0])


class Small(ESFormer):
    def __init__(self):
        super().__init__(SearchSpace.for_size("S0").sample(random.Random(1)), num_classes=3, img_size=32)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def scrambled(network):
    """The same architecture with other values for all that may not matter."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 3)
    return network.double()


def drawn(seed, *shapes):
    """What a measurement draws, by the book: absolute Kaiming-normal weights, then an image."""
    generator = torch.Generator().manual_seed(seed)
    normal = [torch.empty(s, dtype=torch.float64).normal_(0, math.sqrt(2 / math.prod(s[1:])), generator=generator)
              for s in shapes]  # fmt: skip
    image = torch.rand(1, *SHAPE, dtype=torch.float64, generator=generator) - 0.5
    return [*(weight.abs().numpy() for weight in normal), image[0].numpy()]


def conv(x, weight):
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows, weight)


def entropy(activation, reading):
    axes = {"tensor": (0, 1, 2), "position": 0, "channel": (1, 2)}[reading]
    top = activation.max(axis=axes, keepdims=True)
    a = np.divide(activation, top, out=np.zeros_like(activation), where=top > 0)
    return -np.sum(a[a > 0] * np.log(a[a > 0])) / a.size


def measured(proxy, network, seed=5):
    return proxy.measure(network, Draw(torch.Generator().manual_seed(seed), SHAPE))


@pytest.mark.parametrize("reading", ["tensor", "position", "channel"])
def test_entropic_score_by_hand(reading):
    weight, image = drawn(5, (4, 3, 3, 3))
    hidden = np.maximum(conv(image, weight), 0)
    assert 0 < (hidden == 0).mean() < 1  # some are inactive
    expected = entropy(hidden, reading)
    assert measured(EntropicScore(reading), scrambled(OneConv())) == pytest.approx(expected, rel=1e-9)

    first, second, image = drawn(5, (4, 3, 3, 3), (5, 4, 1, 1))
    hidden = np.maximum(conv(image, first), 0)
    output = np.maximum(conv(hidden, second), 0)
    expected = entropy(hidden, reading) + entropy(output, reading)
    assert measured(EntropicScore(reading), scrambled(TwoLayers())) == pytest.approx(expected, rel=1e-9)


def test_the_three_readings_differ():
    assert (
        len({round(measured(EntropicScore(r), TwoLayers().double()), 6) for r in ("tensor", "position", "channel")})
        == 3
    )


def test_log_synflow_by_hand():
    first, second, _ = drawn(5, (4, 3, 3, 3), (5, 4, 1, 1))
    positions = 6 * 6
    hidden = first.sum(axis=(1, 2, 3))  # of an image of ones, at every position
    gradient1 = positions * second.sum(axis=(0, 2, 3))  # of each of the 27 weights of a channel
    gradient2 = positions * hidden
    expected = (first * np.log1p(gradient1)[:, None, None, None]).sum()
    expected += (second * np.log1p(gradient2)[None, :, None, None]).sum()
    assert measured(LogSynflow(), scrambled(TwoLayers())) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("reading", ["tensor", "position", "channel"])
def test_entropy_of_little_tensors(reading):
    of = EntropicScore(reading).entropy
    assert of(torch.zeros(1, 2, 3, 3)) == 0
    assert of(torch.full((1, 2, 3, 3), 7.0)).abs() < 1e-9
    two = torch.tensor([1, 1 / math.e], dtype=torch.float64).view(1, 2, 1, 1) * 5
    assert float(of(two)) == pytest.approx({"channel": 0}.get(reading, 0.5 / math.e), abs=1e-9)
    assert not of(torch.full((1, 2, 3, 3), float("nan"))).isfinite()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("build", [OneConv, TwoLayers, Gated, Attention, Small])
def test_a_network_scores_by_its_architecture_alone(name, build):
    size = 32 if build is Small else 8
    one = score(name, build(), img_size=size)
    assert one > 0
    assert score(name, scrambled(build()), img_size=size) == one
    assert score(name, build().eval().requires_grad_(False), img_size=size) == one


@pytest.mark.parametrize("name", NAMES)
def test_an_activation_shared_by_two_layers_counts_twice(name):
    def network(second):
        first = nn.GELU()
        return nn.Sequential(nn.Conv2d(3, 4, 3), first, nn.Conv2d(4, 4, 3), second or first)

    assert score(name, network(None), img_size=8) == score(name, network(nn.GELU()), img_size=8)


class Spy(Proxy):
    name, needs, source, draws = "spy", "genotype", "a test", 3

    def __init__(self):
        self.seen = []

    def measure(self, subject, draw):
        assert draw.image_shape[0] == 3
        self.seen.append(torch.rand((), generator=draw.generator, dtype=torch.float64).item())
        return self.seen[-1]


def test_a_score_is_the_mean_of_draws_that_follow_from_its_arguments(draw):
    def seen(*args, **kwargs):
        spy = Spy()
        assert score(spy, *args, **kwargs) == pytest.approx(sum(spy.seen) / 3)
        assert len(set(spy.seen)) == 3
        return tuple(spy.seen)

    g = draw()
    assert seen(g) == seen(g, seed=0, img_size=224) == seen(g, img_size=(224, 224))
    others = [seen(g), seen(g, seed=1), seen(g, img_size=32), seen(g, img_size=(32, 224)), seen(g, img_size=(224, 32))]
    assert len({*others, seen(draw(seed=3))}) == 6


def test_a_score_is_the_same_in_any_order_under_any_seed_and_in_any_process(draw, fresh_process):
    asked = [(name, seed) for name in NAMES for seed in range(2)]
    expected = {ask: score(ask[0], draw(seed=ask[1]), seed=4, img_size=(32, 40)) for ask in asked}
    assert len(set(expected.values())) == len(asked)
    torch.manual_seed(99)
    random.seed(99)
    assert {ask: score(ask[0], draw(seed=ask[1]), seed=4, img_size=(32, 40)) for ask in reversed(asked)} == expected
    code = (
        "import random, torch; torch.set_num_threads(2); torch.manual_seed(7)\n"
        "from esformer import SearchSpace, score\n"
        "g = SearchSpace.for_size('S0').sample(random.Random(1))\n"
        f"print(*(score(name, g, seed=4, img_size=(32, 40)).hex() for name in {NAMES[::-1]}))"
    )
    printed = map(float.fromhex, fresh_process("-c", code, PYTHONHASHSEED="3").split())
    assert list(printed) == [expected[name, 1] for name in NAMES[::-1]]  # to the last bit, with other threads too


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_scoring_leaves_no_trace(draw, three_threads, name):
    network = TwoLayers()
    network.register_forward_hook(lambda *_: None)
    network[1].eval()
    network(torch.randn(1, *SHAPE)).sum().backward()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    modules = [(id(module), module.training, len(module._forward_hooks)) for module in network.modules()]
    states = [random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]  # noqa: NPY002

    score(name, network, img_size=8)
    score(name, draw(), img_size=32)
    with pytest.raises(ProxyError):
        score(name, nn.Identity(), img_size=8)

    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(map(torch.equal, (parameter.grad for parameter in network.parameters()), gradients))
    assert [(id(m), m.training, len(m._forward_hooks)) for m in network.modules()] == modules
    assert states == [random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]  # noqa: NPY002
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32 and torch.get_num_threads() == 3


def quick(name):
    """A proxy that draws once instead of three times."""
    proxy = type(proxies.get(name))()
    proxy.draws = 1
    return proxy


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ffn", ["ibn", "convnext", "bottleneck"])
@pytest.mark.parametrize("size", ["S0", "S1", "S2"])
def test_the_largest_genotypes_have_a_finite_score(size, ffn, name):
    space = SearchSpace.for_size(size, extended=True)
    largest = space.build({p: ffn if p[1] == "ffn" else max(allowed) for p, allowed in space.options.items()})
    assert 0 < score(quick(name), largest, img_size=32) < 1e12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["S0", "S1", "S2"])
def test_random_genotypes_have_finite_scores_that_tell_them_apart(draw, size, name):
    scores = {score(quick(name), draw(size, seed, extended=bool(seed % 2)), img_size=32) for seed in range(3)}
    assert len(scores) == 3 and all(0 < value < math.inf for value in scores)


def test_a_network_that_cannot_be_scored_is_refused():
    with pytest.raises(ProxyError, match="activation"):
        score("entropic_score", nn.Conv2d(3, 4, 3), img_size=8)
    with pytest.raises(ProxyError, match="weights|convolutions"):
        score("log_synflow", nn.ReLU(), img_size=8)
    for name in NAMES:
        for factor in (math.inf, math.nan):
            with pytest.raises(ProxyError, match=f"{name} is (nan|inf)"):
                score(name, nn.Sequential(nn.Conv2d(3, 4, 1), Times(factor), nn.Conv2d(4, 4, 1), nn.ReLU()), img_size=8)


def test_a_network_that_does_not_use_its_weights_is_refused():
    class Idle(OneConv):
        def forward(self, x):
            return x

    for name in NAMES:
        with pytest.raises(ProxyError):
            score(name, Idle(), img_size=8)


def test_proxies_are_reached_by_name_and_state_their_contract():
    assert proxies.names() == sorted(NAMES)
    for name in proxies.names():
        proxy = proxies.get(name)
        assert proxy.name == name and proxy.source and proxy.higher_is_better and proxy.draws == 3
    assert [proxies.get(name).needs for name in NAMES] == ["forward", "gradient"]
    for call in (proxies.get, lambda name: score(name, OneConv())):
        with pytest.raises(ValueError, match=r"'synflow'.*entropic_score, log_synflow"):
            call("synflow")
