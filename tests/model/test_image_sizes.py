"""Images of another size than a network was built or trained for: what becomes of the attention biases."""

import copy
import math
import pickle

import numpy as np
import pytest
import timm
import torch
from torch.testing import assert_close

import esformer.model.registry  # noqa: F401 (registers the names)
from esformer.model.attention import resize_biases
from esformer.model.esformer import ESFormer
from esformer.model.weights import fit

AT_224 = (7, 7)  # positions of stage 4's attention, at stride 32, for images of 224 x 224
SIZES = [(8, 8), (12, 12), (5, 10), (3, 3), (4, 9), (1, 1), (13, 2)]  # 256, 384, 160 x 320; down; odd; extreme


def cubic(distance, a=-0.75):
    """The kernel of cubic convolution (Keys, 1981), with the coefficient that image libraries have."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def bicubic(row, count):
    """A row of values at `count` points that share its ends: each a sum of the four nearest, the ends repeated."""
    values = []
    for i in range(count):
        place = (i + 0.5) * len(row) / count - 0.5
        nearest = math.floor(place) + np.arange(-1, 3)
        values.append(cubic(place - nearest) @ row[nearest.clip(0, len(row) - 1)])
    return np.array(values)


def reference(biases, old, new):
    """One head's table of signed distances, interpolated along rows and columns in float64; its non-negative part."""
    whole = np.empty((2 * old[0] - 1, 2 * old[1] - 1))
    for y in range(-old[0] + 1, old[0]):
        for x in range(-old[1] + 1, old[1]):
            whole[y + old[0] - 1, x + old[1] - 1] = biases[abs(y) * old[1] + abs(x)]
    rows = np.stack([bicubic(row, 2 * new[1] - 1) for row in whole])
    both = np.stack([bicubic(column, 2 * new[0] - 1) for column in rows.T], axis=1)
    return both[new[0] - 1 :, new[1] - 1 :].reshape(-1)


@pytest.mark.parametrize("old", [AT_224, (1, 1), (2, 5), (14, 14)])
@pytest.mark.parametrize("new", SIZES)
def test_biases_are_interpolated_as_a_bicubic_reference_does(old, new):
    biases = torch.randn(3, math.prod(old), dtype=torch.float64)
    expected = np.stack([reference(head, old, new) for head in biases.numpy()])
    assert_close(resize_biases(biases, old, new), torch.from_numpy(expected), rtol=0, atol=1e-12)
    assert_close(resize_biases(biases.float(), old, new), torch.from_numpy(expected).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("new", SIZES)
def test_what_interpolation_leaves_alone(new):
    biases = torch.randn(4, 49)
    assert resize_biases(biases, AT_224, AT_224) is biases
    resized = resize_biases(biases, AT_224, new)
    assert resized.shape == (4, math.prod(new)) and resized.dtype == torch.float32
    assert_close(resized[:, 0], biases[:, 0], rtol=0, atol=1e-5)  # of a position to itself
    turned = biases.reshape(4, 7, 7).mT.reshape(4, 49)
    assert_close(
        resize_biases(turned, AT_224, new[::-1]), resized.reshape(4, *new).mT.reshape(4, -1), rtol=0, atol=1e-5
    )
    assert_close(resize_biases(torch.full((1, 49), 0.3), AT_224, new), torch.full((1, math.prod(new)), 0.3))


def test_half_precision_is_interpolated_in_full():
    biases = torch.randn(2, 49).bfloat16()
    resized = resize_biases(biases, AT_224, (8, 8))
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized, resize_biases(biases.float(), AT_224, (8, 8)).bfloat16())


def other(network, genotype, size):
    """The network of the same weights, built for another size."""
    built = ESFormer(genotype, num_classes=7, img_size=size).eval()
    weights, told = fit(network.state_dict(), built)
    assert told == ["attention biases interpolated for another image size"]
    built.load_state_dict(weights)
    return built


@pytest.fixture
def dynamic(draw, randomise):
    return randomise(ESFormer(draw("S0"), num_classes=7, img_size=224, dynamic_img_size=True))


@pytest.mark.parametrize("size", [(256, 256), (384, 384), (160, 320), (64, 64), (97, 130), (32, 32)])
@torch.no_grad()
def test_built_for_a_size_or_following_it_is_the_same(dynamic, draw, size):
    x = torch.randn(1, 3, *size)
    expected = other(dynamic, draw("S0"), size)(x)
    assert_close(dynamic(x), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


@torch.no_grad()
def test_sizes_in_turn_do_not_disturb_each_other(dynamic, draw):
    fixed = ESFormer(draw("S0"), num_classes=7, img_size=224).eval()
    fixed.load_state_dict(dynamic.state_dict())
    images = [torch.randn(2, 3, *size) for size in [(224, 224), (64, 96), (96, 64), (70, 101)]]
    before = [dynamic(x) for x in images]
    state = {name: value.clone() for name, value in dynamic.state_dict().items()}
    assert torch.equal(before[0], fixed(images[0]))
    for x, y in zip(images, before, strict=True):
        assert torch.equal(dynamic(x), y)
    twin, opened = copy.deepcopy(dynamic), pickle.loads(pickle.dumps(dynamic))
    for x, y in zip(reversed(images), reversed(before), strict=True):
        assert torch.equal(twin(x), y) and torch.equal(opened(x), y)
    assert all(torch.equal(value, state[name]) for name, value in dynamic.state_dict().items())


def test_gradients_reach_the_biases_through_the_interpolation(dynamic):
    dynamic(torch.randn(2, 3, 64, 96)).square().sum().backward()
    attention = [module for module in dynamic.modules() if hasattr(module, "attention_biases")]
    assert len(attention) == 5
    for module in attention:
        assert module.attention_biases.grad.abs().max() > 0
    biases = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda table: resize_biases(table, (2, 3), (3, 5)), biases)


@pytest.mark.parametrize("size", ["s0", "s1", "s2"])
@torch.no_grad()
def test_features_at_any_multiple_of_32_in_turn(size):
    network = timm.create_model(f"esformer_{size}", features_only=True).eval()
    assert network.feature_info.reduction() == [4, 8, 16, 32]
    first = torch.randn(1, 3, 64, 64)
    before = network(first)
    for height, width in [(32, 32), (64, 160), (160, 64), (96, 128)]:
        taken = network(torch.randn(1, 3, height, width))
        assert [x.shape for x in taken] == [
            (1, chs, height // stride, width // stride)
            for chs, stride in zip(network.feature_info.channels(), (4, 8, 16, 32), strict=True)
        ]
    assert all(torch.equal(x, y) for x, y in zip(network(first), before, strict=True))


@torch.no_grad()
def test_sizes_that_are_no_multiples_of_32_are_rounded_up():
    network = timm.create_model("esformer_s0", features_only=True).eval()
    taken = network(torch.randn(1, 3, 70, 101))
    assert [tuple(x.shape[2:]) for x in taken] == [(18, 26), (9, 13), (5, 7), (3, 4)]
    assert all(x.isfinite().all() for x in taken)


@torch.no_grad()
def test_following_in_half_precision_and_in_double(dynamic):
    x = torch.randn(1, 3, 64, 96)
    full = dynamic(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(dynamic(x).float(), full, rtol=0.1, atol=0.1 * full.std().item())
    assert_close(dynamic.double()(x.double()).float(), full, rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
@torch.no_grad()
def test_following_compiled(dynamic):
    layer = dynamic.stages[3].blocks[-1]  # a Transformer layer; all of the network takes a minute
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", dynamic=False)
    for size in [(2, 3), (3, 2), (2, 3)]:
        x = torch.randn(1, layer.mlp.fc1.conv.in_channels, *size)
        assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.nightly
@torch.no_grad()
def test_following_exported_for_the_size_of_the_example(dynamic):
    x = torch.randn(1, 3, 64, 96)
    expected = dynamic(x)
    assert_close(torch.export.export(dynamic, (x,)).module()(x), expected, rtol=1e-4, atol=1e-4)


def test_a_training_after_an_evaluation_in_inference_mode(draw):
    features = timm.create_model("esformer_s0", genotype=draw(), img_size=64, features_only=True).eval()
    for size in (96, 64):
        with torch.inference_mode():
            features(torch.randn(1, 3, size, size))
        features.train()(torch.randn(2, 3, size, size))[-1].sum().backward()
