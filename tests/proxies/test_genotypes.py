"""Every proxy on the networks of this project's spaces."""

import math

import pytest
import torch
from networks import SIZE, batch
from torch import nn

from esformer import proxies
from esformer.model.esformer import ESFormer
from esformer.proxies import score
from esformer.space import SearchSpace

NAMES = proxies.names()
COUNTS = ("activations", "macs", "parameters", "depthwise_macs", "stride16_macs")
ENTROPIC = ("entropic_score", "entropic_score_position", "entropic_score_channel", "entropic_score_batch")


def scored(name, subject, **kwargs):
    return score(name, subject, **({"img_size": SIZE} | batch() | kwargs))


@pytest.mark.parametrize("name", sorted({*NAMES} - {"sed"}))
def test_a_genotype_scores_as_its_network(draw, monkeypatch, name):
    """Which `score` builds in a way of its own, without memory and initialisation."""
    genotype, given = draw(seed=1), {**batch(size=64), "img_size": 64, "reference": True}
    expected = scored(name, genotype, **given)
    network = ESFormer(genotype, img_size=64).to(proxies.get(name).dtype)
    monkeypatch.setattr(proxies, "_network", lambda *_: network)
    assert scored(name, genotype, **given) == expected


def test_sed_of_a_genotype_is_that_of_its_network(draw):
    network = nn.Identity()
    network.genotype = draw(seed=1)
    assert scored("sed", network) == scored("sed", draw(seed=1))


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("img_size", [64, (40, 96)])
def test_a_count_of_a_network_is_that_of_its_genotype(draw, name, img_size):
    network = ESFormer(draw(seed=1), img_size=img_size)
    assert scored(name, network, img_size=img_size) == scored(name, draw(seed=1), img_size=img_size)


@pytest.mark.parametrize("name", ["macs", "parameters"])
def test_a_cost_needs_no_network(draw, monkeypatch, name):
    monkeypatch.setattr(proxies, "_network", None)
    assert scored(name, draw(seed=1), img_size=64) > 1e6


@pytest.mark.nightly
@pytest.mark.parametrize("size", ["S0", "S1", "S2"])
def test_random_genotypes_have_finite_scores_that_tell_them_apart(draw, size):
    for name in NAMES:
        if name in (*ENTROPIC[1:], "meco") or (size == "S2" and name == "synflow"):
            continue  # much as entropic_score and log_synflow; see below
        count = 2 if size == "S0" else 1
        scores = {scored(name, draw(size, seed, extended=size != "S0"), draws=1) for seed in range(count)}
        assert all(map(math.isfinite, scores)), name
        assert len(scores) == count or name == "swap", name  # all 2^4 patterns of 4 images


def test_meco_of_a_genotype_on_small_images(draw):
    assert math.isfinite(scored("meco", draw()))


@pytest.mark.parametrize("name", ["entropic_score", "log_synflow"])
@pytest.mark.parametrize("size, ffn", [("S0", "convnext"), ("S1", "bottleneck"), ("S2", "ibn")])
def test_the_largest_genotypes_have_a_finite_score(size, ffn, name):
    space = SearchSpace.for_size(size, extended=True)
    largest = space.build({p: ffn if p[1] == "ffn" else max(allowed) for p, allowed in space.options.items()})
    assert 0 < score(name, largest, img_size=SIZE, draws=1) < 1e12


def test_a_gpu_scores_in_full_precision(monkeypatch, draw):
    """TF32, which cuDNN's convolutions take by default, would move scores by 1e-3."""
    allowed = []
    monkeypatch.setattr(
        proxies.LogSynflow, "measure_genotype", lambda *_: allowed.append(torch.backends.cudnn.allow_tf32) or 1.0
    )
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    score("log_synflow", draw(), img_size=33)
    assert set(allowed) == {False}
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before
