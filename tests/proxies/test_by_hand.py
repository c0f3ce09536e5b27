"""Every proxy against a plain computation on a tiny network, from the same draws: loops and finite differences."""

import math

import numpy as np
import pytest
import torch
from networks import NETWORKS, OneConv, TwoLayers, classifier, scrambled
from timm.layers import BatchNormAct2d
from torch import nn

from esformer import proxies
from esformer.genotype import Genotype
from esformer.model.cost import cost
from esformer.proxies import Draw, ProxyError, score
from esformer.proxies.entropic_score import EntropicScore

SHAPE = (3, 8, 8)
CELL = (3, 4, 4)
READINGS = {"tensor": 1, "position": 1, "channel": 1, "batch": 8}
"""And how many images each feeds."""


def kaiming(generator, *shapes, dtype=np.float64):
    """Kaiming-normal weights as every proxy draws them: in float32, in the order of the network's layers."""
    return [
        torch.empty(s).normal_(0, math.sqrt(2 / math.prod(s[1:])), generator=generator).numpy().astype(dtype)
        for s in shapes
    ]


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def measured(name, network, shape=SHAPE, images=None, labels=None):
    """One measurement of a network whose parameters hold anything."""
    proxy = proxies.get(name)
    network = scrambled(network).to(proxy.dtype)
    return proxy.measure(network, Draw(generator(), shape, images, labels))


def conv(x, weight):
    """A convolution without padding, of one image or of several."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(-2, -1))
    return np.einsum("...chwij,ocij->...ohw", windows, weight)


def batch_norm(x):
    mean, var = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5)


def relu(x):
    return np.maximum(x, 0)


def entropy(activation, reading):
    axes = {"tensor": (1, 2, 3), "position": 1, "channel": (2, 3), "batch": (0, 1, 2, 3)}[reading]
    top = activation.max(axis=axes, keepdims=True)
    a = np.divide(activation, top, out=np.zeros_like(activation), where=top > 0)
    return -np.sum(a[a > 0] * np.log(a[a > 0])) / a.size


@pytest.mark.parametrize("reading", READINGS)
def test_entropic_score(reading):
    name = "entropic_score" if reading == "tensor" else f"entropic_score_{reading}"
    draws = generator()
    (weight,) = map(abs, kaiming(draws, (4, 3, 3, 3)))
    image = torch.rand(READINGS[reading], *SHAPE, dtype=torch.float64, generator=draws).numpy() - 0.5
    hidden = relu(conv(image, weight))
    assert 0 < (hidden == 0).mean() < 1  # some are inactive
    assert measured(name, OneConv()) == pytest.approx(entropy(hidden, reading), rel=1e-9)

    draws = generator()
    first, second = map(abs, kaiming(draws, (4, 3, 3, 3), (5, 4, 1, 1)))
    image = torch.rand(READINGS[reading], *SHAPE, dtype=torch.float64, generator=draws).numpy() - 0.5
    hidden = relu(conv(image, first))
    expected = entropy(hidden, reading) + entropy(relu(conv(hidden, second)), reading)
    assert measured(name, TwoLayers()) == pytest.approx(expected, rel=1e-9)


def test_the_readings_of_entropic_score_differ():
    names = (name for name in proxies.names() if name.startswith("entropic_score"))
    assert len({round(measured(name, TwoLayers()), 6) for name in names}) == 4


@pytest.mark.parametrize("reading", READINGS)
def test_entropy_of_little_tensors(reading):
    of = EntropicScore(reading).entropy
    assert of(torch.zeros(1, 2, 3, 3)) == 0
    assert of(torch.full((1, 2, 3, 3), 7.0)).abs() < 1e-9
    two = torch.tensor([1, 1 / math.e], dtype=torch.float64).view(1, 2, 1, 1) * 5
    assert float(of(two)) == pytest.approx({"channel": 0}.get(reading, 0.5 / math.e), abs=1e-9)
    assert not of(torch.full((1, 2, 3, 3), float("nan"))).isfinite()


@pytest.mark.parametrize("name", ["synflow", "log_synflow"])
def test_synflow_and_log_synflow(name):
    first, second = map(abs, kaiming(generator(), (4, 3, 3, 3), (5, 4, 1, 1)))
    positions = 6 * 6
    hidden = first.sum(axis=(1, 2, 3))  # of an image of ones, at every position
    gradient1 = positions * second.sum(axis=(0, 2, 3))[:, None, None, None]  # of each of the 27 weights of a channel
    gradient2 = positions * hidden[None, :, None, None]
    flow = {"synflow": lambda g: g, "log_synflow": np.log1p}[name]
    expected = (first * flow(gradient1)).sum() + (second * flow(gradient2)).sum()
    assert measured(name, TwoLayers()) == pytest.approx(expected, rel=1e-9)


def test_naswot():
    network = classifier(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.GELU(), nn.Softmax(1)
    )
    images = torch.randn(4, *SHAPE, generator=generator(1))
    first, second = kaiming(generator(), (4, 3, 3, 3), (4, 4, 1, 1))
    one = batch_norm(conv(images.numpy(), first))
    two = conv(relu(one), second)
    codes = [[bool(unit > 0) for layer in (one, two) for unit in layer[i].ravel()] for i in range(4)]
    kernel = [[sum(a == b for a, b in zip(codes[i], codes[j], strict=True)) for j in range(4)] for i in range(4)]
    assert kernel[0][0] == 2 * 4 * 36 and 0 < kernel[0][1] < 2 * 4 * 36
    expected = math.log(abs(np.linalg.det(kernel)))
    assert measured("naswot", network, images=images, labels=torch.zeros(4)) == pytest.approx(expected, rel=1e-6)


class Smooth:
    """Convolution, batch norm, tanh, linear, softmax, cross-entropy; derivatives from differences of the loss."""

    images, labels = torch.randn(5, *CELL, generator=generator(2)), torch.tensor([0, 1, 2, 2, 1])
    halves = (slice(0, 3), slice(3, 5))
    everything = slice(0, 5)

    def __init__(self):
        convolution, linear = kaiming(generator(), (2, 3, 3, 3), (3, 8))
        self.shapes = convolution.shape, linear.shape
        self.weights = np.concatenate([convolution.ravel(), linear.ravel()])

    @staticmethod
    def network():
        return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))

    @staticmethod
    def layers(vector):
        return vector[:54], vector[54:]

    def loss(self, weights, which):
        convolution, linear = (part.reshape(shape) for part, shape in zip(self.layers(weights), self.shapes))
        hidden = np.tanh(batch_norm(conv(self.images[which].double().numpy(), convolution)))
        logits = hidden.reshape(len(hidden), -1) @ linear.T
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.mean([-math.log(p[label]) for p, label in zip(chances, self.labels[which], strict=True)])

    def gradient(self, weights, which, step=1e-5):
        steps = np.eye(weights.size) * step
        return np.array([self.loss(weights + s, which) - self.loss(weights - s, which) for s in steps]) / (2 * step)

    def measured(self, name):
        return measured(name, self.network(), CELL, self.images, self.labels)


def test_grad_norm():
    smooth = Smooth()
    first, second = smooth.layers(smooth.gradient(smooth.weights, smooth.everything))
    expected = math.sqrt((first**2).sum()) + math.sqrt((second**2).sum())
    assert smooth.measured("grad_norm") == pytest.approx(expected, rel=1e-4)


def test_grasp():
    smooth = Smooth()
    gradient = smooth.gradient(smooth.weights, smooth.everything)
    step = 1e-3 * gradient
    change = smooth.gradient(smooth.weights + step, smooth.everything)
    change -= smooth.gradient(smooth.weights - step, smooth.everything)
    expected = -(smooth.weights @ change) / 2e-3
    assert abs(expected) > 0.01
    assert smooth.measured("grasp") == pytest.approx(expected, rel=1e-3)


def test_zico():
    smooth = Smooth()
    one, other = (smooth.layers(smooth.gradient(smooth.weights, half)) for half in smooth.halves)
    expected = 0
    for layer in range(2):
        ratios = [np.mean([abs(a), abs(b)]) / np.std([a, b]) for a, b in zip(one[layer], other[layer], strict=True)]
        expected += math.log(sum(ratios))
    assert smooth.measured("zico") == pytest.approx(expected, rel=1e-3)


def test_zen_score():
    network = classifier(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    shapes = (4, 3, 3, 3), (4, 4, 3, 3)
    draws = generator()
    kaiming(draws, *shapes, (3, 4))  # which standard normal weights replace
    first, second, _ = (torch.empty(s).normal_(generator=draws).double().numpy() for s in (*shapes, (3, 4)))
    x, e = (torch.randn(16, *SHAPE, generator=draws).double().numpy() for _ in range(2))

    def run(images):
        one = conv(images, first)
        two = conv(relu(batch_norm(one)), second)
        return batch_norm(two), one, two

    before, *normed = run(x)
    after, *_ = run(x + 0.01 * e)
    expected = math.log(np.abs(before - after).sum() / 16)
    expected += sum(math.log(math.sqrt(np.mean([layer[:, c].var() for c in range(4)]))) for layer in normed)
    assert measured("zen_score", network) == pytest.approx(expected, rel=1e-5)


def test_a_norm_on_a_dead_branch_does_not_count_in_zen_score():
    class Dead(nn.Sequential):
        def forward(self, x):
            x = self[1](self[0](x))
            return self[3](self[2](x * 0)) + x

    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
    assert math.isfinite(measured("zen_score", Dead(*layers)))


def test_meco():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 9, 4))
    draws = generator()
    first, second = kaiming(draws, (4, 3, 3, 3), (9, 4, 4, 4))
    hidden = conv(torch.randn(1, *SHAPE, generator=draws).double().numpy(), first)
    normed = batch_norm(hidden)
    output = conv(np.tanh(normed), second)[0]
    assert output.shape == (9, 3, 3)  # as many channels as positions, so that they cannot be independent
    smallest = [
        np.linalg.eigvalsh(np.corrcoef(channels.reshape(len(channels), -1)))[0]
        for channels in (hidden[0], normed[0], np.tanh(normed)[0], output)
    ]
    assert min(smallest[:3]) > 0.01 and abs(smallest[3]) < 1e-9
    assert measured("meco", network) == pytest.approx(sum(smallest), rel=1e-5)
    nested = nn.Sequential(nn.Sequential(*network[:2]), *network[2:])  # the outer module's output counts once
    assert measured("meco", nested) == pytest.approx(sum(smallest), rel=1e-5)


def test_a_channel_that_does_not_vary_has_no_correlation_in_meco():
    class Blind(nn.Module):
        def forward(self, x):
            return x * torch.tensor([1.0, 1, 0]).view(3, 1, 1)

    image = torch.randn(1, *SHAPE, generator=generator()).double().numpy()[0]
    correlation = np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1]
    # of 1 and its correlation with another channel, and 0 for the third
    assert measured("meco", nn.Sequential(Blind())) == pytest.approx(min(1 - abs(correlation), 0), abs=1e-7)


def test_counts():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 2 * 2, 3),
    )  # fmt: skip
    assert score("parameters", network, img_size=8) == (8 * 27 + 8) + (8 * 2 * 9) + (32 * 3 + 3)
    assert score("macs", network, img_size=8) == 16 * 8 * 27 + 4 * 8 * 2 * 9 + 32 * 3
    assert score("activations", network, img_size=8) == 2
    network[3] = network[1]  # one module that acts twice
    assert score("activations", network, img_size=8) == 2


def test_where_a_network_spends_its_macs():
    stem, local, late = nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), 16
    network = nn.Sequential(stem, local, nn.Conv2d(8, late, 1, stride=4), nn.Flatten(), nn.Linear(late, 5))
    spent = {"stride4": 64 * 8 * 27, "stride8": 16 * 8 * 9, "stride32": 1 * 8 * late + late * 5, "stride16": 0}
    for name, macs in (spent | {"depthwise": spent["stride8"]}).items():
        assert score(f"{name}_macs", network, img_size=32) == pytest.approx(macs / sum(spent.values()))
    genotype = Genotype.shipped("efficientformerv2_s0")
    shares = [score(f"stride{stride}_macs", genotype, img_size=64) for stride in (4, 8, 16, 32)]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0.05


def test_counts_of_a_genotype_are_those_of_its_network():
    genotype = Genotype.shipped("esformer_s0")
    exact = cost(genotype, img_size=64)
    assert score("parameters", genotype, img_size=64) == exact.params
    assert score("macs", genotype, img_size=64) == exact.macs


def test_naswot_without_norms():
    def network():
        return classifier(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4), nn.GELU())

    images = 3 + torch.randn(4, *SHAPE, generator=generator(1))  # which a batch norm would centre
    first, second = kaiming(generator(), (4, 3, 3, 3), (4, 4, 1, 1))
    one = conv(images.numpy(), first)
    two = conv(relu(one), second)
    codes = np.concatenate([layer.reshape(4, -1) > 0 for layer in (one, two)], axis=1)
    kernel = (codes[:, None] == codes[None]).sum(-1)
    expected = math.log(np.linalg.det(kernel))
    given = {"images": images, "labels": torch.zeros(4)}
    assert measured("naswot_without_norms", network(), **given) == pytest.approx(expected, rel=1e-6)
    assert measured("naswot", network(), **given) != pytest.approx(expected, rel=1e-3)


def test_zen_score_without_norms():
    network = classifier(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    shapes = (4, 3, 3, 3), (4, 4, 3, 3)
    draws = generator()
    kaiming(draws, *shapes, (3, 4))  # which standard normal weights replace
    first, second, _ = (torch.empty(s, dtype=torch.float64).normal_(generator=draws) for s in (*shapes, (3, 4)))
    x, e = (torch.randn(16, *SHAPE, dtype=torch.float64, generator=draws).numpy() for _ in range(2))
    before, after = (conv(relu(conv(images, first.numpy())), second.numpy()) for images in (x, x + 0.01 * e))
    expected = math.log(np.abs(before - after).sum() / 16)
    assert measured("zen_score_without_norms", network) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [3, 70])
def test_swap(count):
    """Also of more images than one number has bits."""
    network = classifier(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.GELU())
    images = torch.randn(count, *SHAPE, generator=generator(1))
    first, second = kaiming(generator(), (4, 3, 3, 3), (4, 4, 1, 1))
    one = batch_norm(conv(images.numpy(), first))
    two = conv(relu(one), second)
    patterns = {tuple(unit) for layer in (one, two) for unit in (layer > 0).reshape(count, -1).T}
    assert len(patterns) <= min(2**count, 288)
    assert measured("swap", network, images=images, labels=torch.zeros(count)) == len(patterns)


class SelfAttention(nn.Module):
    """One head on the positions of an image, without bias: its queries, keys and values are one matrix."""

    def __init__(self, channels):
        super().__init__()
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        return self.proj(((q @ k.transpose(1, 2)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


def test_dss():
    """On an image of ones all tokens are equal, so that attention passes the values on, and no gradient to the rest."""
    network = classifier(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), SelfAttention(4))
    patch, qkv, proj, head = map(abs, kaiming(generator(), (4, 3, 3, 3), (12, 4), (4, 4, 1, 1), (3, 4)))
    scale = 1 / math.sqrt(1 + 1e-5)  # of a batch norm with initial statistics
    token = scale * patch.sum(axis=(1, 2, 3))
    value, proj = qkv[8:] @ token, proj[:, :, 0, 0]
    by_out = head.sum(axis=0)
    by_value = proj.T @ by_out
    by_qkv = np.concatenate([np.zeros((8, 4)), np.outer(by_value, token)])
    by_token = qkv[8:].T @ by_value
    expected = np.linalg.norm(by_qkv, "nuc") * np.linalg.norm(qkv, "nuc")
    expected += np.linalg.norm(np.outer(by_out, value), "nuc") * np.linalg.norm(proj, "nuc")
    expected += (head * (proj @ value)).sum() + scale * (patch * by_token[:, None, None, None]).sum()
    assert measured("dss", network) == pytest.approx(expected, rel=1e-9)


def test_dss_knows_attentions_of_every_make():
    for build in NETWORKS["attention"], NETWORKS["encoder"], NETWORKS["vit"], NETWORKS["esformer"]:
        assert score("dss", build(), img_size=32) > 0
    with pytest.raises(ProxyError, match="dss needs a network with attentions"):
        score("dss", NETWORKS["pooled"](), img_size=32)
