"""Adaptive clipping against timm's, on the networks' real gradients."""

import copy

import pytest
import torch
from operators import Operators
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer
from esformer.training.clipping import clip_grad_adaptive_


@pytest.fixture(scope="module")
def network():
    """An S2 with gradients of one batch, in the memory layout of the training."""
    torch.manual_seed(0)
    network = ESFormer(Genotype.shipped("efficientformerv2_s2"), 10, img_size=64).to(memory_format=torch.channels_last)
    logits = network(torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    return network


@pytest.mark.parametrize("factor", [0.01, 1e-4, 10.0])
def test_it_clips_as_timm_does(network, factor):
    ours, theirs = copy.deepcopy(network), copy.deepcopy(network)
    for one in (ours, theirs):
        for p, q in zip(one.parameters(), network.parameters(), strict=True):
            p.grad = q.grad.clone()
        one.stem.conv1.conv.weight.grad.zero_()
        one.head.weight.grad[0] = 0
        one.head.bias.grad = None
    clip_grad_adaptive_(ours.parameters(), factor)
    adaptive_clip_grad(theirs.parameters(), factor)
    changed = 0
    for (name, p), q, before in zip(ours.named_parameters(), theirs.parameters(), network.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None
            continue
        assert p.grad.stride() == before.grad.stride()
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
        changed += not torch.equal(p.grad, before.grad)
    assert changed > (0 if factor > 1 else 20)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (4, 3, 2), (6, 2, 3, 3), (2, 3, 2, 2, 2)])
def test_units_are_timms_for_every_number_of_dimensions(shape):
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    ours.grad = torch.randn(shape) * 10
    theirs.grad = ours.grad.clone()
    clip_grad_adaptive_([ours])
    adaptive_clip_grad([theirs])
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=0)


def test_it_takes_as_many_operators_for_any_network_and_waits_for_none(network):
    parameters = list(network.parameters())
    found = []
    for some in (parameters[:10], parameters):
        clip_grad_adaptive_(some, 1e9)
        with Operators() as operators:
            clip_grad_adaptive_(some, 1e9)
        assert not operators.waits
        found.append(operators.total)
    assert found[0] == found[1] <= 25
    clip_grad_adaptive_([])
