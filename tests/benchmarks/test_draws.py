"""What a survey trains: networks of one cost, and pairs that differ in what they are named after."""

import random

import pytest

from esformer.benchmarks import draws as module
from esformer.benchmarks.draws import COUNTS, ROUND, TOLERANCE, Draws, shipped_reference
from esformer.model.cost import cost
from esformer.proxies import score
from esformer.space import SearchSpace


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(module, "SCORES", 4)
    monkeypatch.setattr(module, "STEPS", 300)


@pytest.fixture(scope="module")
def draws():
    return Draws(SearchSpace.for_size("S0"), shipped_reference("S0"), 3_500_000, 48, 10)


def index(kind, end=""):
    return 1 + ROUND.index((kind, end))


def test_the_first_is_the_reference(draws):
    assert draws[0].genotype == shipped_reference("S0")


@pytest.mark.parametrize("kind", ["at cost", "neighbour"])
def test_they_cost_what_the_reference_costs(draws, kind):
    drawn = draws[index(kind)]
    assert drawn.drawn == kind
    assert drawn.genotype != draws.reference
    price = cost(drawn.genotype, 48, 10)
    assert price.params == pytest.approx(draws.target[0], rel=1.01 * TOLERANCE)
    assert price.macs == pytest.approx(draws.target[1], rel=1.01 * TOLERANCE)


def test_a_neighbour_differs_in_three_genes_at_most(draws):
    ours, theirs = (draws.space.values(g) for g in (draws.reference, draws[index("neighbour")].genotype))
    assert 1 <= sum(ours[place] != theirs[place] for place in ours) <= 3


def test_those_within_the_budget_use_it(draws):
    assert 0.9 * 3_500_000 <= cost(draws[index("within budget")].genotype, 48, 10).params <= 3_500_000


@pytest.mark.parametrize("name", COUNTS)
def test_a_pair_differs_in_its_genes_alone_at_one_cost(draws, name):
    genes, count = COUNTS[name]
    low, high = (draws[index(name, end)] for end in ("low", "high"))
    assert (low.drawn, high.drawn) == (f"low {name} 0", f"high {name} 0")
    assert count(low.genotype) < count(high.genotype)
    ours, theirs = (draws.space.values(drawn.genotype) for drawn in (low, high))
    assert {place[1] for place in ours if ours[place] != theirs[place]} <= set(genes)
    prices = [cost(drawn.genotype, 48, 10) for drawn in (low, high)]
    assert prices[0].macs == pytest.approx(prices[1].macs, rel=0.031)
    assert prices[0].params == pytest.approx(prices[1].params, rel=0.031)


@pytest.mark.parametrize("name", ["entropic_score", "naswot"])
def test_a_pair_is_told_apart_by_its_proxy(draws, name):
    low, high = (draws[index(name, end)].genotype for end in ("low", "high"))
    batch = draws._batch if name == "naswot" else {}
    values = [score(name, genotype, 0, 48, draws=1, **batch) for genotype in (low, high)]
    assert values[0] < values[1]


def test_a_draw_depends_on_nothing_but_its_number(draws):
    again = Draws(draws.space, draws.reference, 3_500_000, 48, 10)
    random.seed(1)
    assert again[index("kernel", "high")] == draws[index("kernel", "high")]
    other = Draws(draws.space, draws.reference, 3_500_000, 48, 10, seed=1)
    assert other[1] != draws[1] != draws[1 + len(ROUND)]
