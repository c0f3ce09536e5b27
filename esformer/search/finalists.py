"""Finalists: which genotypes of a search are trained, and how long, before one of them is chosen.

A training-free guide tells good networks from bad ones better than the best from the second best. So the best and most
different that a search found are trained, by successive halving (Jamieson and Talwalkar, "Non-stochastic Best Arm
Identification and Hyperparameter Optimization", AISTATS 2016): all of them for a few epochs, the best third of them for
three times as many, and so on until one is left.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from esformer.genotype import Genotype
from esformer.guide import Guide
from esformer.search.journal import Evaluation, read
from esformer.search.ranking import Ranking

ETA = 3
"""A rung leaves one of so many networks, and the next trains it for so many times the epochs."""
POOL = 10
"""Finalists are chosen from the best so many times their number."""


@dataclass(frozen=True)
class Finalist:
    """A genotype that a search found, and where its guide places it.

    Args:
        genotype: the architecture.
        place: in the guide's ranking of all that were evaluated, from 1.
        guide: what the guide gives it among all that were evaluated.
    """

    genotype: Genotype
    place: int
    guide: float


@dataclass(frozen=True)
class Rung:
    """A step of successive halving: so many networks, each trained anew for so many epochs."""

    networks: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.networks} networks x {self.epochs} epoch{'s' if self.epochs > 1 else ''}"


def ranking(journal: str | os.PathLike[str], guide: Guide, size: int) -> list[Finalist]:
    """The best genotypes of a search by a guide, each once, the best first.

    A journal can hold more genotypes than fit into memory, so it is read twice: the scale of each proxy in a sum is
    known only at its end.

    Args:
        journal: the file; evaluations that lack one of the guide's proxies do not count.
        guide: what ranks.
        size: how many to give at most.

    Raises:
        JournalError: there is no such file, or it is not a journal.
    """
    worth = Ranking(guide, _scored(journal, guide.proxies))
    best: dict[Genotype, float] = {}
    least = -math.inf
    for evaluation in _scored(journal, guide.proxies):
        if (value := worth(evaluation)) > least:
            best[Genotype.from_dict(evaluation.genotype)] = value
        if len(best) == 2 * size:
            best = _highest(best, size)
            least = min(best.values())
    return [Finalist(genotype, place, value) for place, (genotype, value) in enumerate(_highest(best, size).items(), 1)]


def _scored(journal: str | os.PathLike[str], proxies: Sequence[str]) -> Iterator[Evaluation]:
    """The evaluations that a guide of these proxies can rank."""
    return (evaluation for evaluation in read(journal) if all(proxy in evaluation.scores for proxy in proxies))


def _highest(values: Mapping[Genotype, float], size: int) -> dict[Genotype, float]:
    """Those of the highest values; of equal ones, those that came first."""
    return dict(sorted(values.items(), key=lambda item: -item[1])[:size])


def distance(a: Genotype, b: Genotype) -> int:
    """How many genes of two genotypes of a space differ (Hamming)."""
    pairs = zip(a.blocks(), b.blocks(), strict=True)
    return sum(
        x != y for one, other in pairs for x, y in zip(one.genes().values(), other.genes().values(), strict=True)
    )


def most_different(best: Sequence[Finalist], number: int) -> list[Finalist]:
    """The first of a ranking, and again and again the one that is farthest from all that were taken.

    Args:
        best: different genotypes, the best first; of equally far ones the better is taken.
        number: how many to take, or all if there are fewer.

    Returns:
        The taken ones in the order of the ranking.
    """
    taken = list(best[:1])
    nearest = [distance(one.genotype, taken[0].genotype) for one in best]
    while len(taken) < min(number, len(best)):
        taken.append(best[nearest.index(max(nearest))])
        nearest = [min(d, distance(one.genotype, taken[-1].genotype)) for d, one in zip(nearest, best, strict=True)]
    return sorted(taken, key=lambda one: one.place)


def rungs(networks: int, epochs: int) -> list[Rung]:
    """The steps of successive halving until one network is left; none if there is only one.

    Args:
        networks: in the first rung.
        epochs: of the last rung, which trains two or three networks; the one before has a third of them, at least 1.
    """
    numbers = [networks] if networks > 1 else []
    while numbers and numbers[-1] > ETA:
        numbers.append(math.ceil(numbers[-1] / ETA))
    shares = [ETA**before for before in reversed(range(len(numbers)))]
    return [Rung(number, max(1, round(epochs / share))) for number, share in zip(numbers, shares, strict=True)]


def seconds(steps: Sequence[Rung], at_a_time: int, epoch: float, start: float = 0.0) -> float:
    """How long rungs take.

    Args:
        steps: the rungs.
        at_a_time: trainings that run side by side.
        epoch: seconds of an epoch of a training.
        start: seconds that a training takes besides.
    """
    return sum(math.ceil(rung.networks / at_a_time) * (start + rung.epochs * epoch) for rung in steps)


def epochs_within(
    limit: float, networks: int, at_a_time: int, epoch: float, start: float = 0.0, most: int = 1_000_000
) -> int:
    """The most epochs of the last rung with which all rungs fit into a time; 1 if none do.

    Args:
        limit: the time in seconds.
        networks: in the first rung.
        at_a_time: trainings that run side by side.
        epoch: seconds of an epoch of a training.
        start: seconds that a training takes besides.
        most: the answer is no higher.
    """
    fits, too_many = 1, most + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if seconds(rungs(networks, middle), at_a_time, epoch, start) <= limit:
            fits = middle
        else:
            too_many = middle
    return fits


def describe(steps: Sequence[Rung]) -> str:
    """The rungs in words."""
    return ", then ".join(map(str, steps)) or "one network"
