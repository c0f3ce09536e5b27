from dataclasses import replace

import pytest
import torch
from timm.layers import LayerScale2d
from torch import nn
from torch.testing import assert_close

from esformer.checkpoint.loading import build
from esformer.export import fold, speed_up
from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer


@pytest.fixture(scope="module")
def every_kind(draw):
    """A genotype of the extended space that has all three FFNs in convolution blocks and in Transformer layers."""
    genotype, kinds = draw("S0", extended=True), ("ibn", "convnext", "bottleneck")
    stages = tuple(
        tuple(
            replace(block, ffn=kinds[b % 3], ratio=4 if kinds[b % 3] == "bottleneck" else 3)
            for b, block in enumerate(stage)
        )
        for stage in genotype.stages
    )
    return Genotype(genotype.space, stages)


@pytest.mark.parametrize("shipped", [None, "esformer_s0", "efficientformerv2_s1", "esformer_s2"])
@torch.no_grad()
def test_outputs_and_features_are_the_same_in_float64(every_kind, randomise, shipped):
    genotype = Genotype.shipped(shipped) if shipped else every_kind
    network = randomise(ESFormer(genotype, num_classes=7, img_size=64)).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = fold(network)
    for ours, wanted in (
        (folded(images), network(images)),
        (folded.forward_features(images), network.forward_features(images)),
        (folded.stages(folded.stem(images)), network.stages(network.stem(images))),
    ):
        assert_close(ours, wanted, rtol=1e-12, atol=1e-12 * wanted.abs().max().item())


@torch.no_grad()
def test_outputs_differ_by_rounding_in_float32(every_kind, randomise):
    network = randomise(ESFormer(every_kind, num_classes=7, img_size=(64, 96)))
    images = torch.randn(2, 3, 64, 96)
    wanted = network(images)
    assert_close(fold(network)(images), wanted, rtol=0, atol=2e-6 * wanted.abs().max().item())


def test_only_the_last_norm_is_left(every_kind):
    network = ESFormer(every_kind, num_classes=7, img_size=64)
    folded = fold(network.train())
    norms = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == ["norm"] and not folded.training
    assert not any(isinstance(module, LayerScale2d) for module in folded.modules())
    assert network.training and sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) > 50


@torch.no_grad()
def test_a_network_without_layer_scales(every_kind, randomise):
    network = randomise(ESFormer(every_kind, num_classes=7, img_size=64, layer_scale_init_value=None)).double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert_close(fold(network)(images), network(images), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_feature_network_folds_too(every_kind, randomise):
    network = randomise(build(every_kind, features_only=True, img_size=64))
    images = torch.randn(1, 3, 96, 64)
    for ours, wanted in zip(fold(network)(images), network(images), strict=True):
        assert_close(ours, wanted, rtol=0, atol=2e-6 * wanted.abs().max().item())


class Work(nn.Module):
    def __init__(self, name, times, calls):
        super().__init__()
        self.name, self.times, self.calls = name, times, calls

    def forward(self, x):
        self.calls.append(self.name)
        for _ in range(self.times):
            x = x @ x
        return x


def test_the_speed_up_is_measured_by_turns():
    calls = []
    found = speed_up(Work("a", 40, calls), Work("b", 10, calls), torch.eye(128), turns=12)
    assert calls[-22:] == ["a", "b"] * 11  # before, the second warms up
    assert found.before.runs == found.after.runs == 12
    assert found.quartiles[0] <= found.ratio <= found.quartiles[1]
    assert found.before.ms > 2 * found.after.ms > 0 and found.ratio > 2
    assert "times as fast" in str(found)
