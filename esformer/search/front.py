"""Pareto fronts of cost (lower is better) against worth (higher is better), and NSGA-II's order of what lies behind."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

Values: TypeAlias = Sequence[float] | np.ndarray


def front(costs: Values, worths: Values) -> np.ndarray:
    """The points that no other dominates: whatever costs no more is worth less.

    Args:
        costs: (N).
        worths: (N).

    Returns:
        Indices, along which both costs and worths rise. Of equal points the first counts.
    """
    costs, worths = np.asarray(costs, dtype=float), np.asarray(worths, dtype=float)
    order = np.lexsort((-worths, costs))  # of equal cost the worthiest first
    cheaper = np.maximum.accumulate(np.concatenate([[-np.inf], worths[order]]))[:-1]
    return order[worths[order] > cheaper]


def spread(costs: Values, count: int) -> np.ndarray:
    """At most `count` of some points, evenly over the logarithm of their costs; the dearest is one of them.

    Args:
        costs: (N), rising and above 0.
        count: at least 1.

    Returns:
        Indices, rising.
    """
    logs = np.log(np.asarray(costs, dtype=float))
    if len(logs) <= count:
        return np.arange(len(logs))
    places = np.linspace(logs[-1], logs[0], count)
    return np.unique(np.abs(logs[:, None] - places).argmin(axis=0))


def dominance_order(costs: Values, worths: Values) -> np.ndarray:
    """Points in the order in which NSGA-II prefers them (Deb et al., 2002).

    Those of the front come first, then the front of what is left, and so on; within a front the less crowded ones,
    its ends before all.

    Args:
        costs: (N), above 0; distances are those of their logarithms.
        worths: (N).

    Returns:
        Indices, the best first.
    """
    logs, worths = np.log(np.asarray(costs, dtype=float)), np.asarray(worths, dtype=float)
    left, order = np.arange(len(logs)), np.empty(0, dtype=int)
    while len(left):
        one = left[front(logs[left], worths[left])]
        gaps = _gaps(logs[one]) + _gaps(worths[one])
        order = np.concatenate([order, one[np.argsort(-gaps, kind="stable")]])
        left = left[~np.isin(left, one)]
    return order


def _gaps(values: np.ndarray) -> np.ndarray:
    """How far apart the neighbours of each of some rising values are, as a share of the range; the ends have none."""
    gaps = np.full(len(values), np.inf)
    gaps[1:-1] = (values[2:] - values[:-2]) / (np.ptp(values) or 1.0)
    return gaps
