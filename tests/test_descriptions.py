"""A network is described in several places: each knows every kind of FFN, agrees with the network, and refuses others.

Whoever adds a kind to `esformer/choices.py` reads here which place was forgotten.
"""

import random
from dataclasses import replace

import pytest
import torch

from esformer.choices import EXTENDED, choices_of
from esformer.genotype import unchecked
from esformer.model.cost import cost
from esformer.model.esformer import ESFormer
from esformer.model.weights import origin
from esformer.plots.genotype import draw_genotype
from esformer.proxies import score
from esformer.proxies.cached_weights import CachedWeights
from esformer.proxies.scaled import ScaledNetwork
from esformer.space import SearchSpace

KINDS = choices_of("S0" + EXTENDED).ffn


def all_of(kind):
    """A genotype whose every FFN is of this kind."""
    genotype = SearchSpace.for_size("S0", extended=True).sample(random.Random(0))
    stages = tuple(tuple(replace(block, ffn=kind) for block in stage) for stage in genotype.stages)
    return unchecked(genotype.space, stages)


def known_to_the_network(genotype, tmp_path):
    """esformer/model/ffn.py"""
    assert ESFormer(genotype, 10, img_size=32).eval()(torch.zeros(1, 3, 32, 32)).isfinite().all()


def known_to_its_cost(genotype, tmp_path):
    """esformer/model/cost.py"""
    price = cost(genotype, 32, 10)
    assert price.params == sum(parameter.numel() for parameter in ESFormer(genotype, 10, img_size=32).parameters())


def known_to_fast_scores(genotype, tmp_path):
    """esformer/proxies/scaled.py"""
    for name in ("entropic_score", "log_synflow"):
        fast, slow = (score(name, genotype, img_size=33, draws=1, reference=reference) for reference in (False, True))
        assert fast == pytest.approx(slow, rel=1e-5) and fast != slow


def known_to_weights(genotype, tmp_path):
    """esformer/model/weights.py"""
    blocks = [block.ffn for block in origin(ESFormer(genotype, 10, img_size=32).state_dict()).genotype.blocks()]
    assert blocks == [block.ffn for block in genotype.blocks()]


def known_to_pictures(genotype, tmp_path):
    """esformer/plots/genotype.py"""
    draw_genotype(genotype, tmp_path / "genotype.png", "")


PLACES = (known_to_the_network, known_to_its_cost, known_to_fast_scores, known_to_weights, known_to_pictures)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_ffn_is(kind, place, tmp_path):
    place(all_of(kind), tmp_path)


ALONE = {  # without the network, which would refuse the kind for them
    "esformer/model/ffn.py": lambda genotype, folder: ESFormer(genotype, 10, img_size=32),
    "esformer/model/cost.py": lambda genotype, folder: cost(genotype, 32, 10),
    "esformer/proxies/scaled.py": lambda genotype, folder: ScaledNetwork(genotype, CachedWeights("k")).output(
        torch.ones(3, 33, 33)
    ),
    "esformer/plots/genotype.py": lambda genotype, folder: draw_genotype(genotype, folder / "genotype.png", ""),
}


@pytest.mark.parametrize("place", ALONE)
def test_another_kind_is_not_taken_for_one_of_these(place, tmp_path):
    ALONE[place](all_of("ibn"), tmp_path)
    with pytest.raises((KeyError, AssertionError), match="another"):
        ALONE[place](all_of("another"), tmp_path)
