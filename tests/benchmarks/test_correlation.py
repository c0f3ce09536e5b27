"""What scores say about accuracies: against hand-made cases, brute force and theory."""

import itertools
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from esformer.benchmarks import correlation
from esformer.benchmarks.correlation import Correlation, Selection, at_equal_cost, correlate, select, top_mean


def pairs(n, strength, seed=0):
    generator = np.random.default_rng(seed)
    accuracies = generator.normal(size=n)
    return accuracies, strength * accuracies + math.sqrt(1 - strength**2) * generator.normal(size=n)


def tau_b(x, y):
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in itertools.combinations(range(len(x)), 2)]
    concordant = sum(a * b for a, b in signs)
    return concordant / math.sqrt(sum(a * a for a, _ in signs) * sum(b * b for _, b in signs))


def test_coefficients_with_ties():
    accuracies = np.array([90.0, 91.0, 92.0, 93.0, 93.0, 80.0])
    scores = np.array([1.0, 2.0, 2.0, 5.0, 4.0, 3.0])
    found = correlate(accuracies, scores)
    assert found.kendall == pytest.approx(tau_b(accuracies, scores))
    ranks = np.array([2, 3, 4, 5.5, 5.5, 1]), np.array([1, 2.5, 2.5, 6, 5, 4])
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])


@pytest.mark.nightly
def test_only_the_order_of_the_scores_counts():
    accuracies, scores = pairs(200, 0.5)
    found = correlate(accuracies, scores)
    assert correlate(accuracies, np.exp(scores)) == found
    assert correlate(accuracies, -scores).spearman == pytest.approx(-found.spearman)
    shuffled = np.random.default_rng(1).permutation(200)
    assert correlate(accuracies[shuffled], scores[shuffled]).kendall == pytest.approx(found.kendall)


@pytest.mark.nightly
def test_intervals_are_as_wide_as_theory_says():
    accuracies, scores = pairs(1000, 0.6)
    found = correlate(accuracies, scores)
    low, high = found.spearman_interval
    assert low < found.spearman < high
    half = 1.96 * math.sqrt((1 + found.spearman**2 / 2) / (1000 - 3))  # on Fisher's scale (Bonett and Wright)
    theory = math.tanh(math.atanh(found.spearman) + half) - math.tanh(math.atanh(found.spearman) - half)
    assert high - low == pytest.approx(theory, rel=0.15)
    assert found.kendall_interval[0] < found.kendall < found.kendall_interval[1]
    assert found.resamples == 1000
    assert correlate(accuracies, scores) == found
    assert correlate(accuracies, scores, seed=1).spearman_interval != found.spearman_interval


def test_large_tables_take_fewer_resamples(monkeypatch):
    monkeypatch.setattr(correlation, "ENOUGH", 30_000)
    accuracies, scores = pairs(150, 0.6)
    assert correlate(accuracies, scores).resamples == 200
    monkeypatch.setattr(correlation, "ENOUGH", 1)
    assert correlate(accuracies, scores).resamples == correlation.FEWEST


def test_a_selection_shows_its_ties():
    accuracies = np.array([94.0, 93.0, 93.0, 92.0, 91.0])
    assert select(accuracies, np.array([1, 7, 2, 7, 7])) == Selection(3, 93.0, 92.0, 91.0, 2, 11 / 3, 5)
    assert select(accuracies, np.array([9, 7, 2, 7, 7])) == Selection(1, 94.0, 94.0, 94.0, 1, 1.0, 1)
    assert select(accuracies, np.array([1, 2, 9, 7, 7])).best_rank == 2  # as good as the other 93


@pytest.mark.parametrize("scores", [[5, 4, 3, 2, 1], [5, 4, 4, 4, 1], [5, 5, 5, 5, 5], [1, 5, 5, 2, 2]])
def test_the_mean_of_the_top_is_that_over_all_orders_of_the_tied(scores):
    accuracies, scores = np.array([90.0, 91.5, 93.0, 94.0, 70.0]), np.array(scores)
    orders = [
        o for o in itertools.permutations(range(5)) if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))
    ]
    expected = np.mean([accuracies[list(order[:3])].mean() for order in orders])
    assert top_mean(accuracies, scores, k=3) == pytest.approx(expected)
    assert top_mean(accuracies, scores) == pytest.approx(accuracies.mean())  # fewer than ten: all of them


def test_where_nothing_can_be_said():
    assert correlate(np.array([]), np.array([])) == Correlation(0)
    two = correlate(np.array([90.0, 91.0]), np.array([1.0, 2.0]))
    assert (two.n, two.spearman, two.selected.best) == (2, None, 91.0)
    constant = correlate(np.array([90.0, 91.0, 92.0]), np.ones(3))
    assert (constant.spearman, constant.kendall_interval, constant.resamples) == (None, None, 0)
    assert constant.selected == Selection(3, 92.0, 91.0, 90.0, 1, 2.0, 3)


def test_resamples_of_three_may_hold_one_alone():
    found = correlate(np.array([90.0, 91.0, 92.0]), np.array([1.0, 2.0, 2.0]))
    numbers = [found.spearman, found.kendall, *found.spearman_interval, *found.kendall_interval]
    assert np.isfinite(numbers).all()
    assert "nan" not in str(asdict(found))


def _given(ranks):
    """Partial correlation of the first two columns given the others, from the inverse of the correlation matrix."""
    inverse = np.linalg.inv(np.corrcoef(ranks.T))
    return -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])


def test_the_partial_correlation_is_that_of_the_inverse_matrix():
    generator = np.random.default_rng(0)
    costs = generator.uniform(1, 2, (200, 2))
    accuracies = costs @ [3, 1] + generator.normal(size=200)
    scores = costs[:, 0] + 0.5 * accuracies + generator.normal(size=200)
    found = at_equal_cost(accuracies, scores, costs)
    ranks = np.column_stack([stats.rankdata(column) for column in (accuracies, scores, *costs.T)])
    assert found.partial == pytest.approx(_given(ranks))
    assert found.partial_interval[0] < found.partial < found.partial_interval[1]


def test_a_score_that_is_a_cost_says_nothing_beyond_it():
    costs = np.random.default_rng(0).uniform(1, 2, (50, 2))
    found = at_equal_cost(costs.sum(axis=1), costs[:, 0], costs)
    assert found.partial is None


def test_pairs_at_equal_cost_are_counted_by_hand():
    costs = np.array([[100, 10], [102, 10.2], [103, 10], [200, 20], [150, 10]])
    accuracies = np.array([1.0, 2, 3, 9, 5])
    found = at_equal_cost(accuracies, np.array([1.0, 3, 3, 0, 0]), costs)
    assert found.pairs == 3  # of the first three; the others cost something else
    assert found.decided == pytest.approx((1 + 1 + 0.5) / 3)


def test_where_costs_are_all_apart_nothing_is_said_of_pairs():
    found = at_equal_cost(np.arange(9.0), np.arange(9.0), np.exp(np.arange(9.0))[:, None])
    assert (found.pairs, found.decided, found.decided_interval) == (0, None, None)
