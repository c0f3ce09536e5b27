"""How a guide ranks genotypes among others: those of a population, the best of all seen, the front of a family."""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from esformer.guide import Guide
from esformer.search.front import dominance_order, front
from esformer.search.space import Architecture


@dataclass(frozen=True)
class Scored:
    """A genotype and what the proxies of its phase give it."""

    genotype: Architecture
    scores: dict[str, float]
    cost: float = 0.0
    """What it costs, in a search for a family."""


class Rated(Protocol):
    """What has scores, by proxy: a genotype that was just scored, or a line of a journal."""

    @property
    def scores(self) -> dict[str, float]: ...


class Largest:
    """Values as shares of the largest absolute one."""

    def __init__(self) -> None:
        self._largest = 0.0

    def include(self, value: float) -> None:
        self._largest = max(abs(value), self._largest)

    def __call__(self, value: float) -> float:
        return value / (self._largest or 1.0)


class Ranks:
    """Ranks of values among all, as shares of their number; equal ones share the mean of their ranks."""

    def __init__(self) -> None:
        self._sorted: list[float] = []

    def include(self, value: float) -> None:
        insort(self._sorted, value)

    def __call__(self, value: float) -> float:
        return (bisect_left(self._sorted, value) + bisect_right(self._sorted, value) + 1) / 2 / len(self._sorted)


class Ranking:
    """What a guide gives a genotype among others; higher is better. `Guide.worth` one by one.

    Args:
        guide: its proxy, or the sum of its proxies.
        among: those that give the proxies their scale.
    """

    def __init__(self, guide: Guide, among: Iterable[Rated] = ()) -> None:
        self.guide = guide
        self._scales = {proxy: Largest() if guide.sum == "largest" else Ranks() for proxy in guide.proxies}
        for scored in among:
            self.include(scored)

    def include(self, scored: Rated) -> None:
        for proxy, scale in self._scales.items():
            scale.include(scored.scores[proxy])

    def __call__(self, scored: Rated) -> float:
        if len(self.guide.terms) == 1:
            return self.guide.terms[0].weight * scored.scores[self.guide.terms[0].proxy]
        total = 0.0
        for proxy, weight, log in self.guide.terms:
            scaled = self._scales[proxy](scored.scores[proxy])
            total += weight * (math.log(scaled) if log else scaled)
        return total


class FrontRanking:
    """How near a genotype is to the front of cost and worth of some, itself one of them, and how alone it is there."""

    def __init__(self, guide: Guide, among: Iterable[Scored]) -> None:
        scored = list(among)
        worth = Ranking(guide, scored)
        order = dominance_order([one.cost for one in scored], [worth(one) for one in scored])
        self._place = {id(scored[index]): place for place, index in enumerate(order)}  # one genotype may be there twice

    def __call__(self, scored: Scored) -> float:
        return -self._place[id(scored)]


class Best:
    """The best genotypes seen, each once, by a guide."""

    def __init__(self, guide: Guide, size: int) -> None:
        self.size = size
        self.ranking: list[Scored] = []
        """The best first."""
        self._worth = Ranking(guide)

    def add(self, scored: Scored) -> None:
        self._worth.include(scored)
        if all(scored.genotype != other.genotype for other in self.ranking):
            self.ranking = sorted([*self.ranking, scored], key=self._worth, reverse=True)[: self.size]


class Front:
    """Of all genotypes seen, those of the front of cost and a guide's worth."""

    def __init__(self, guide: Guide) -> None:
        self._guide = guide
        self._kept: list[Scored] = []

    def add(self, scored: Scored) -> None:
        if any(self._dominates(other, scored) for other in self._kept):
            return
        self._kept = [*(other for other in self._kept if not self._dominates(scored, other)), scored]

    @property
    def ranking(self) -> list[Scored]:
        """The best first, which is the dearest."""
        return front_of(self._guide, self._kept)

    def _dominates(self, one: Scored, other: Scored) -> bool:
        """Whether one is as cheap and as good in every proxy, so whatever these are divided by in their sum."""
        return one.cost <= other.cost and all(
            weight * one.scores[proxy] >= weight * other.scores[proxy] for proxy, weight, _ in self._guide.terms
        )


def front_of(guide: Guide, scored: Sequence[Scored]) -> list[Scored]:
    """The front of cost and worth of some genotypes; the best first, which is the dearest."""
    worth = Ranking(guide, scored)
    chosen = front([one.cost for one in scored], [worth(one) for one in scored])
    return [scored[index] for index in reversed(chosen)]
