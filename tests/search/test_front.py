import numpy as np
import pytest

from esformer.search.front import dominance_order, front, spread


def points(seed, n=60, levels=12):
    """Costs and worths with many ties."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, levels, n).astype(float), rng.integers(-levels, levels, n).astype(float)


def dominates(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def undominated(pairs):
    return {pair for pair in pairs if not any(dominates(other, pair) for other in pairs)}


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nothing_dominates(seed):
    costs, worths = points(seed, n=1 + 5 * seed)
    pairs = list(zip(costs, worths, strict=True))
    chosen = front(costs, worths)
    assert [pairs[i] for i in chosen] == sorted(undominated(pairs))  # each once, the cheapest first
    assert all(pairs.index(pairs[i]) == i for i in chosen)
    assert (np.diff(costs[chosen]) > 0).all() and (np.diff(worths[chosen]) > 0).all()


@pytest.mark.parametrize("seed", range(10))
def test_the_order_goes_front_by_front_and_begins_with_its_ends(seed):
    costs, worths = points(seed)
    order = list(dominance_order(costs, worths))
    assert sorted(order) == list(range(len(costs)))
    while order:
        left = sorted(order)
        one = {left[i] for i in front(costs[left], worths[left])}
        assert set(order[: len(one)]) == one
        ends = {min(one, key=lambda i: costs[i]), max(one, key=lambda i: costs[i])}
        assert set(order[: len(ends)]) == ends
        order = order[len(one) :]


def test_within_a_front_the_loneliest_comes_first():
    costs, worths = np.array([1.0, 2.0, 2.1, 10.0, 100.0]), np.array([1.0, 2.0, 2.1, 3.0, 4.0])
    assert list(dominance_order(costs, worths)) == [0, 4, 3, 2, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_what_is_kept_is_spread_over_the_logarithm_of_the_costs(count):
    costs = np.unique(np.concatenate([np.geomspace(1, 1000, 31), np.linspace(900, 1000, 200)]))
    kept = spread(costs, count)
    assert len(kept) == min(count, len(kept)) and kept[-1] == len(costs) - 1 and (np.diff(kept) > 0).all()
    if count > 1:
        assert kept[0] == 0
        places = np.geomspace(1, 1000, count)
        nearest = [np.abs(np.log(costs / place)).min() for place in places]
        assert all(np.abs(np.log(costs[kept] / p)).min() <= n + 1e-12 for p, n in zip(places, nearest, strict=True))
    assert list(spread([1.0, 2.0], 5)) == [0, 1]
