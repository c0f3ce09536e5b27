"""Every proxy on the networks of this project's spaces."""

import math

import pytest
from networks import SIZE, batch
from torch import nn

from esformer import proxies
from esformer.model.esformer import ESFormer
from esformer.proxies import score
from esformer.space import SearchSpace

NAMES = proxies.names()
ENTROPIC = ("entropic_score", "entropic_score_position", "entropic_score_channel", "entropic_score_batch")


def scored(name, subject, **kwargs):
    return score(name, subject, **({"img_size": SIZE} | batch() | kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_a_genotype_scores_as_its_network(draw, name):
    genotype = draw(seed=1)
    if name == "sed":
        network = nn.Identity()
        network.genotype = genotype
    else:
        network = ESFormer(genotype, img_size=64)
    expected = scored(name, genotype, **batch(size=64), img_size=64)
    assert scored(name, network, **batch(size=64), img_size=64, identity=genotype.digest) == expected


@pytest.mark.parametrize("size", ["S0", "S1", "S2"])
def test_random_genotypes_have_finite_scores_that_tell_them_apart(draw, size):
    for name in NAMES:
        if name in (*ENTROPIC[1:], "meco") or (size == "S2" and name == "synflow"):
            continue  # much as entropic_score and log_synflow; see below
        proxy = proxies.get(name)
        quick = type(proxy)()
        quick.draws = 1
        count = 2 if size == "S0" else 1
        scores = {scored(quick, draw(size, seed, extended=size != "S0")) for seed in range(count)}
        assert all(map(math.isfinite, scores)), name
        assert len(scores) == count, name


def test_meco_of_a_genotype_on_small_images(draw):
    assert math.isfinite(scored("meco", draw()))


@pytest.mark.parametrize("name", ["entropic_score", "log_synflow"])
@pytest.mark.parametrize("size, ffn", [("S0", "convnext"), ("S1", "bottleneck"), ("S2", "ibn")])
def test_the_largest_genotypes_have_a_finite_score(size, ffn, name):
    space = SearchSpace.for_size(size, extended=True)
    largest = space.build({p: ffn if p[1] == "ffn" else max(allowed) for p, allowed in space.options.items()})
    proxy = type(proxies.get(name))()
    proxy.draws = 1
    assert 0 < score(proxy, largest, img_size=SIZE) < 1e12
