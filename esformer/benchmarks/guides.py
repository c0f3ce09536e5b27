"""Guides of a few terms, fitted to trained networks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from esformer.benchmarks.correlation import AtEqualCost, at_equal_cost
from esformer.errors import ESFormerError
from esformer.guide import Guide, Term

SIGNIFICANT = 2
"""Decimals of a fitted weight, of which the largest is 1; it is judged as it is printed."""


@dataclass(frozen=True)
class Fitted:
    """A guide, how many architectures it was fitted to, and what it is worth on those that it has not seen."""

    guide: Guide
    fitted_to: int
    judged_on: int
    judged: AtEqualCost


def fit_halves(
    accuracies: np.ndarray, scores: Mapping[str, np.ndarray], costs: np.ndarray, most: int = 4, seed: int = 0
) -> list[Fitted]:
    """Guides fitted to one half of the architectures and judged on the other, both ways round.

    Args:
        accuracies, scores, costs, most: as for `fit`.
        seed: of the halves and of the bootstrap.
    """
    halves = np.array_split(np.random.default_rng(seed).permutation(len(accuracies)), 2)
    found = []
    for half, other in (halves, halves[::-1]):
        seen, unseen = ({name: values[part] for name, values in scores.items()} for part in (half, other))
        for guide in fit(accuracies[half], seen, costs[half], most):
            judged = at_equal_cost(accuracies[other], guide.worth(unseen), costs[other], seed)
            found.append(Fitted(guide, len(half), len(other), judged))
    return found


def fit(accuracies: np.ndarray, scores: Mapping[str, np.ndarray], costs: np.ndarray, most: int = 4) -> list[Guide]:
    """Guides of one term, of two, and so on, that say what costs leave unsaid of accuracies.

    Forward selection by least squares on ranks, after what the ranks of the costs explain was taken from all of
    them: each guide has the terms of the one before and the one that then explains most, with all weights fitted
    anew. It ends where leave-one-out prediction no longer improves; the first is always there.

    Args:
        accuracies: of N trained networks.
        scores: for each proxy N values of the same networks.
        costs: N, K: for each of K costs a column.
        most: the largest number of terms.

    Raises:
        ESFormerError: there are too few networks, or no proxy says anything beyond cost.
    """
    n, names = len(accuracies), sorted(scores)
    if n < costs.shape[1] + most + 3:
        raise ESFormerError(f"{n} networks are too few to fit a guide of {most} terms")
    ranked = np.column_stack([stats.rankdata(values) for values in (accuracies, *(scores[name] for name in names))]) / n
    known = np.column_stack([np.ones(n), *(stats.rankdata(column) for column in costs.T)])
    left = ranked - known @ np.linalg.lstsq(known, ranked, rcond=None)[0]
    target, terms = left[:, 0], left[:, 1:]
    usable = [i for i in range(len(names)) if np.linalg.norm(terms[:, i]) > 1e-9 * np.linalg.norm(ranked[:, i + 1])]
    chosen: list[int] = []
    guides: list[Guide] = []
    error = np.inf
    while len(chosen) < most and (open_ := [i for i in usable if i not in chosen]):
        best = min(open_, key=lambda i: _residual(terms[:, [*chosen, i]], target))
        if guides and (found := _left_out(terms[:, [*chosen, best]], target, known)) >= error:
            break
        error = found if guides else _left_out(terms[:, [best]], target, known)
        chosen.append(best)
        weights = np.linalg.lstsq(terms[:, chosen], target, rcond=None)[0]
        rounded = np.round(weights / np.abs(weights).max(), SIGNIFICANT)
        guides.append(Guide(tuple(Term(names[i], float(w)) for i, w in zip(chosen, rounded, strict=True) if w)))
    if not guides:
        raise ESFormerError("none of the proxies differs between networks of the same cost")
    return guides


def _residual(terms: np.ndarray, target: np.ndarray) -> float:
    """The sum of squares that terms leave unexplained."""
    left = target - terms @ np.linalg.lstsq(terms, target, rcond=None)[0]
    return float(left @ left)


def _left_out(terms: np.ndarray, target: np.ndarray, known: np.ndarray) -> float:
    """The sum of squared errors, each of a network that the fit has not seen (PRESS, Allen 1974)."""
    design = np.column_stack([known, terms])
    hat = design @ np.linalg.pinv(design)
    return float((((target - hat @ target) / (1 - np.diag(hat))) ** 2).sum())
