"""The proxies of AZ-NAS against plain computations, and the blocks that they find in networks."""

import math

import numpy as np
import pytest
import timm
import torch
from networks import classifier, of_timm
from torch import nn
from torch.nn import functional as F

from esformer import proxies
from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer
from esformer.proxies import Draw, ProxyError, score
from esformer.proxies.blocks import BATCH, primary_blocks

NAMES = ("az_expressivity", "az_progressivity", "az_trainability")
SHAPE = (3, 7, 7)


def network():
    """Two convolutions in a row; the second halves 5 x 5 positions to 2 x 2 or, padded, to 3 x 3."""
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, 2, 1, bias=False))


def draws():
    """The weights and images of one measurement, and the generator as it is after them."""
    generator = torch.Generator().manual_seed(5)
    first, second = (
        torch.empty(s).normal_(0, math.sqrt(2 / math.prod(s[1:])), generator=generator)
        for s in ((6, 3, 3, 3), (4, 6, 3, 3))
    )
    return first, second, torch.randn(BATCH, *SHAPE, generator=generator), generator


def measured(name, subject):
    return proxies.get(name).measure(subject, Draw(torch.Generator().manual_seed(5), SHAPE))


def entropy(feature):
    """Of the variances along the principal axes, from the singular values of the centred points."""
    points = feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1]).double().numpy()
    variances = np.linalg.svd(points - points.mean(0), compute_uv=False) ** 2
    p = variances / variances.sum()
    return -(p * np.log(p)).sum()


def test_expressivity_and_progressivity():
    first, second, images, _ = draws()
    one = F.conv2d(images, first)
    scores = entropy(one), entropy(F.conv2d(one.relu(), second, stride=2, padding=1))
    assert measured("az_expressivity", network()) == pytest.approx(sum(scores), rel=1e-5)
    assert measured("az_progressivity", network()) == pytest.approx(scores[1] - scores[0], rel=1e-4)


def test_trainability():
    """From the whole Jacobian, of 3 x 3 positions that merge 2 x 2 each, the last of them with a border of zeros."""
    first, second, images, generator = draws()
    one = F.conv2d(images, first)
    signs = torch.randint(0, 2, (BATCH, 3, 3, 4), generator=generator) * 2.0 - 1
    total = np.zeros((24, 4))
    for image, sign in zip(one, signs, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: F.conv2d(x[None].relu(), second, stride=2, padding=1)[0], image
        )
        gradient = np.zeros((6, 6, 6))
        gradient[:, :5, :5] = np.einsum("hwo,ohwcij->cij", sign.numpy(), jacobian.numpy())
        for h in range(3):
            for w in range(3):
                merged = gradient[:, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].ravel()
                total += np.outer(merged, sign[h, w].numpy()) / (BATCH * 9)
    norm = np.linalg.norm(total, 2)
    assert measured("az_trainability", network()) == pytest.approx(2 - norm - 1 / norm, rel=1e-4)


def test_a_block_that_passes_every_gradient_on_is_the_most_trainable():
    class Same(nn.Conv2d):
        def forward(self, x):
            return x + 0 * self.weight.sum()

    assert measured("az_trainability", nn.Sequential(Same(3, 3, 1), Same(3, 3, 1))) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    "build, kind, count",
    [
        (of_timm("resnet18"), "BasicBlock", 8),
        (of_timm("convnext_atto"), "ConvNeXtBlock", 12),
        (of_timm("vit_tiny_patch16_224", depth=3), "Block", 3),
        (of_timm("swin_tiny_patch4_window7_224"), "SwinTransformerBlock", 12),
        (lambda: ESFormer(Genotype.shipped("esformer_s0"), img_size=48), None, 16),
    ],
)
def test_blocks_are_those_of_the_architecture(build, kind, count):
    with torch.device("meta"):
        found = list(primary_blocks(build()))
    assert len(found) == count
    assert kind is None or {type(block).__name__ for block in found} == {kind}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["resnet10t", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_timm_networks_and_genotypes_are_scored(name, kind):
    kwargs = {
        "resnet10t": {},
        "swin_tiny_patch4_window7_224": {"img_size": 64, "depths": (1, 1, 1, 1), "window_size": 2},
        "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    }[kind]
    assert math.isfinite(score(name, timm.create_model(kind, **kwargs), img_size=64))
    assert math.isfinite(score(name, Genotype.shipped("esformer_s0"), img_size=48))


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_blocks_is_refused(name):
    with pytest.raises(ProxyError, match=f"{name} compares the feature maps of blocks .* found 1 of at least 2"):
        score(name, classifier(nn.Conv2d(3, 4, 3), nn.ReLU()), img_size=32)
    with pytest.raises(ProxyError, match="not defined here|one depends on the other"):
        score(name, Constant(), img_size=32)


class Constant(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False))

    def forward(self, x):
        return self[0](0 * x) + self[1](0 * x)
