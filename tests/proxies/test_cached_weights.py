"""Cached weights: the same values for the same layer, whatever else was asked for, and no more than needed."""

import random

import pytest
import torch

from esformer.proxies import score
from esformer.proxies.cached_weights import CHUNK, CachedWeights, cached_weights, log_std

COUNTS = (1, CHUNK - 1, CHUNK, CHUNK + 1, 100, 1000, 4097)


@pytest.fixture(autouse=True)
def _nothing_kept():
    cached_weights.cache_clear()
    yield
    cached_weights.cache_clear()


@pytest.mark.parametrize("count", COUNTS)
def test_a_longer_draw_begins_as_a_shorter_one(count):
    assert torch.equal(CachedWeights("k").normal("a", (count,)), CachedWeights("k").normal("a", (5000,))[:count])


def test_what_was_asked_for_before_does_not_matter():
    rng, kept = random.Random(0), CachedWeights("k", keep=True)
    for _ in range(100):
        layer, shape = rng.choice("abc"), (rng.randint(1, 40), rng.randint(1, 9), 3, 3)
        expected = CachedWeights("k").normal(layer, shape)
        assert torch.equal(kept.magnitudes(layer, shape), expected.abs())
        assert torch.equal(CachedWeights("k").magnitudes(layer, shape), expected.abs())
        assert torch.equal(kept.normal(layer, shape), expected)  # not the kept magnitudes


def test_streams_are_told_apart_by_key_and_layer():
    drawn = [CachedWeights(key).normal(layer, (50,)) for key in ("k", "l") for layer in ("a", "b")]
    assert len({tuple(values.tolist()) for values in drawn}) == 4
    assert max(abs(torch.corrcoef(torch.stack(drawn)) - torch.eye(4)).flatten()) < 0.6


def test_values_are_standard_normal_and_scaled_to_kaimings():
    values = CachedWeights("k").normal("a", (100_000,)).double()
    moments = [(values**n).mean().item() for n in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)
    for shape in ((16, 8, 3, 3), (16, 1, 5, 5), (1000, 48)):
        weight = torch.nn.init.kaiming_normal_(torch.empty(500, *shape[1:]))
        assert weight.std().log().item() == pytest.approx(log_std(shape), abs=0.05)


def test_neither_default_dtype_nor_random_state_matters_or_is_touched():
    expected, before = CachedWeights("k", keep=True).magnitudes("a", (20,)), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        again = CachedWeights("k").magnitudes("a", (20,))
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.dtype == torch.float32 and torch.equal(again, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_kept_values_are_drawn_seldom_and_take_little_memory(monkeypatch):
    drawn = []
    draw = CachedWeights._draw
    monkeypatch.setattr(CachedWeights, "_draw", lambda self, *args: drawn.append(args) or draw(self, *args))
    kept = CachedWeights("k", keep=True)
    for count in range(100, 20_000, 50):
        kept.magnitudes("a", (count,))
    assert len(drawn) <= 9  # 100 doubled until it is enough
    assert kept._drawn["a"].untyped_storage().nbytes() <= 2 * 4 * count
    unkept = CachedWeights("k")
    unkept.magnitudes("a", (20,))
    assert not unkept._drawn


def test_the_streams_of_a_few_keys_are_kept():
    first = cached_weights("0/0", "cpu")
    assert cached_weights("0/0", "cpu") is first
    for number in range(10):
        cached_weights(f"1/{number}", "cpu")
    assert cached_weights.cache_info().currsize <= 4 and cached_weights("0/0", "cpu") is not first


def test_scoring_keeps_what_was_drawn_and_changes_none_of_it(draw):
    genotypes = [draw("S0-extended" if i % 2 else "S0", seed=i) for i in range(4)]
    for name in ("entropic_score", "log_synflow", "entropic_score_position"):
        for genotype in genotypes:
            score(name, genotype, img_size=33, draws=2)
    for number in (0, 1):
        kept = cached_weights(f"genotype/0/{number}", "cpu")
        assert "head.weight" in kept._drawn and len(kept._drawn) > 50
        for layer, values in kept._drawn.items():
            assert torch.equal(values, CachedWeights(kept.key).normal(layer, values.shape).abs()), layer
            assert not values.requires_grad and values.grad_fn is None
        assert sum(values.untyped_storage().nbytes() for values in kept._drawn.values()) < 100e6
    assert cached_weights.cache_info().currsize == 2  # for both proxies together


def test_the_reference_draws_afresh(draw):
    expected = score("log_synflow", draw(), img_size=33, draws=1)
    for values in cached_weights("genotype/0/0", "cpu")._drawn.values():
        values.zero_()  # as a bug might
    assert score("log_synflow", draw(), img_size=33, draws=1, reference=True) == pytest.approx(expected, rel=1e-5)
