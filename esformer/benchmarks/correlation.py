"""How well scores order architectures by their trained accuracy, and which architecture they would have selected."""

import warnings
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from scipy import stats

Interval: TypeAlias = tuple[float, float]

RESAMPLES = 1000
ENOUGH = 20_000_000
"""Values to resample in all: beyond 20,000 architectures intervals are narrow, and fewer resamples describe them."""
FEWEST = 100
EQUAL = 0.03
"""Costs that differ by no more, as a share, count as equal."""
MOST_PAIRED = 2000
"""Architectures that are compared in all pairs; of more, a sample of this size."""


@dataclass(frozen=True)
class Selection:
    """The architectures of the highest score. A rank is 1 plus the number of architectures that are more accurate."""

    tied: int
    """How many share the highest score."""
    best: float
    """Accuracy of the most accurate of them."""
    mean: float
    worst: float
    best_rank: int
    mean_rank: float
    worst_rank: int


@dataclass(frozen=True)
class Correlation:
    """What scores say about accuracies. None where nothing can be said: fewer than three, or all scores equal."""

    n: int
    spearman: float | None = None
    spearman_interval: Interval | None = None
    kendall: float | None = None
    """Tau-b, which accounts for ties."""
    kendall_interval: Interval | None = None
    selected: Selection | None = None
    top10_mean: float | None = None
    """Mean accuracy of the ten of the highest score."""
    resamples: int = 0
    """How many bootstrap resamples the intervals (percentile, 95 %) come from."""


@dataclass(frozen=True)
class AtEqualCost:
    """What scores say beyond cost, such as parameters and MACs. None where nothing can be said."""

    partial: float | None = None
    """Spearman's rho given the costs: of what the ranks of the costs, linearly, leave unexplained of both ranks."""
    partial_interval: Interval | None = None
    pairs: int = 0
    """Pairs of architectures whose costs differ by `EQUAL` at most, and whose accuracies differ."""
    decided: float | None = None
    """The share of these pairs in which the higher score is the more accurate one's; equal scores count half."""
    decided_interval: Interval | None = None


def correlate(accuracies: np.ndarray, scores: np.ndarray, seed: int = 0) -> Correlation:
    """Compare the scores of architectures with their accuracies.

    Args:
        accuracies: of the trained networks.
        scores: of the same architectures; higher is taken to promise more.
        seed: of the bootstrap.
    """
    accuracies, scores = np.asarray(accuracies, dtype=float), np.asarray(scores, dtype=float)
    n = len(scores)
    if n == 0:
        return Correlation(0)
    selected, top = select(accuracies, scores), top_mean(accuracies, scores)
    spearman, kendall = _coefficients(accuracies, scores) if n > 2 else (np.nan, np.nan)
    if np.isnan(spearman):
        return Correlation(n, selected=selected, top10_mean=top)
    resamples = min(RESAMPLES, max(FEWEST, ENOUGH // n))
    spearman_interval, kendall_interval = _intervals(accuracies, scores, resamples, np.random.default_rng(seed))
    return Correlation(n, spearman, spearman_interval, kendall, kendall_interval, selected, top, resamples)


def at_equal_cost(accuracies: np.ndarray, scores: np.ndarray, costs: np.ndarray, seed: int = 0) -> AtEqualCost:
    """What scores say of accuracies beyond what costs say.

    Args:
        accuracies: of the trained networks, N.
        scores: of the same architectures; higher is taken to promise more.
        costs: of the same architectures, N, K: for each of K costs a column of positive numbers.
        seed: of the bootstrap over architectures (percentile intervals, 95 %).
    """
    n = len(scores)
    resamples = min(RESAMPLES, max(FEWEST, ENOUGH // max(n, 1)))
    generator = np.random.default_rng(seed)
    found = AtEqualCost()
    partial = _partial(accuracies, scores, costs) if n > costs.shape[1] + 2 else np.nan
    if not np.isnan(partial):
        draws = (generator.integers(n, size=n) for _ in range(resamples))
        interval = _percentiles(np.array([_partial(accuracies[d], scores[d], costs[d]) for d in draws]))
        found = replace(found, partial=partial, partial_interval=interval)
    if n > MOST_PAIRED:
        drawn = generator.permutation(n)[:MOST_PAIRED]
        accuracies, scores, costs, n = accuracies[drawn], scores[drawn], costs[drawn], MOST_PAIRED
    logs = np.log(costs)
    first, second = np.nonzero(np.triu(np.ones((n, n), dtype=bool), 1))
    apart = accuracies[first] != accuracies[second]
    same = (np.abs(logs[first] - logs[second]) <= np.log1p(EQUAL)).all(axis=1)
    first, second = first[apart & same], second[apart & same]
    if not len(first):
        return found
    right = 0.5 + 0.5 * np.sign(scores[first] - scores[second]) * np.sign(accuracies[first] - accuracies[second])
    shares = []
    for _ in range(min(RESAMPLES, resamples)):
        times = np.bincount(generator.integers(n, size=n), minlength=n)  # how often each architecture is drawn
        weights = times[first] * times[second]
        if weights.any():
            shares.append(np.average(right, weights=weights))
    return replace(
        found, pairs=len(first), decided=float(right.mean()), decided_interval=_percentiles(np.array(shares))
    )


def select(accuracies: np.ndarray, scores: np.ndarray) -> Selection:
    """What the maximum of the scores selects, with all that share it."""
    tied = accuracies[scores == scores.max()]
    ranks = stats.rankdata(-accuracies, method="min")[scores == scores.max()]
    return Selection(
        tied=len(tied),
        best=float(tied.max()),
        mean=float(tied.mean()),
        worst=float(tied.min()),
        best_rank=int(ranks.min()),
        mean_rank=float(ranks.mean()),
        worst_rank=int(ranks.max()),
    )


def top_mean(accuracies: np.ndarray, scores: np.ndarray, k: int = 10) -> float:
    """Mean accuracy of the k highest scores; of those tied at the k-th place, what a draw among them gives on average.

    Examples:
        >>> top_mean(np.array([90.0, 80.0, 70.0]), np.array([2.0, 1.0, 1.0]), k=2)
        82.5
    """
    k = min(k, len(scores))
    last = np.partition(scores, -k)[-k]
    above, tied = accuracies[scores > last], accuracies[scores == last]
    return float((above.sum() + (k - len(above)) * tied.mean()) / k)


def _coefficients(accuracies: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Spearman's rho and Kendall's tau-b; NaN if all scores or all accuracies are equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        rho = stats.spearmanr(accuracies, scores).statistic
    return float(rho), float(stats.kendalltau(accuracies, scores, method="asymptotic").statistic)


def _partial(accuracies: np.ndarray, scores: np.ndarray, costs: np.ndarray) -> float:
    """Spearman's partial rho; NaN where the costs leave nothing of either to explain."""
    ranks = np.column_stack([stats.rankdata(values) for values in (accuracies, scores)])
    explaining = np.column_stack([np.ones(len(ranks)), *(stats.rankdata(column) for column in costs.T)])
    left = ranks - explaining @ np.linalg.lstsq(explaining, ranks, rcond=None)[0]
    norms = np.linalg.norm(left, axis=0)
    if (norms <= 1e-9 * np.linalg.norm(ranks, axis=0)).any():
        return float("nan")
    return float(left[:, 0] @ left[:, 1] / norms.prod())


def _percentiles(values: np.ndarray) -> Interval | None:
    """Where 95 % of the values lie that are numbers."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _intervals(
    accuracies: np.ndarray, scores: np.ndarray, resamples: int, generator: np.random.Generator
) -> tuple[Interval, Interval]:
    """Where 95 % of the coefficients of resampled architectures lie."""
    draws = (generator.integers(len(scores), size=len(scores)) for _ in range(resamples))
    found = np.array([_coefficients(accuracies[draw], scores[draw]) for draw in draws])
    found = found[~np.isnan(found).any(axis=1)]  # of a few architectures, a resample may hold one alone
    (a, c), (b, d) = np.percentile(found, (2.5, 97.5), axis=0)
    return (float(a), float(b)), (float(c), float(d))
