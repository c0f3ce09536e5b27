"""Regularised evolution (REA) as section 3.5 refines it: tournament, several mutations at once, crossover, ageing."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal, Protocol

from esformer.choices import Group
from esformer.genotype import Genotype
from esformer.search.schedule import Phase
from esformer.space import SearchSpace

Origin = Literal["sample", "seed", "mutation", "crossover"]
Allowed = Callable[[Genotype], bool]

MUTATION_TRIES = 1000
"""How often a mutation that exceeds the budget is drawn anew before the parent itself stands in for it."""


@dataclass(frozen=True)
class Offspring:
    """A genotype that waits for its score, and where it comes from."""

    genotype: Genotype
    origin: Origin


@dataclass(frozen=True)
class Scored:
    """A genotype and what the proxies of its phase give it; higher is better."""

    genotype: Genotype
    scores: dict[str, float]


class Rated(Protocol):
    """What has scores, by proxy: a genotype that was just scored, or a line of a journal."""

    @property
    def scores(self) -> dict[str, float]: ...


class Ranking:
    """What a genotype is worth among others: its score, or the sum of several, each divided by the others' largest.

    The sum is FreeREA's (section 3.3 there): so no proxy outweighs another by its units alone.
    """

    def __init__(self, among: Iterable[Rated]) -> None:
        self.largest: dict[str, float] = {}
        for scored in among:
            self.include(scored)

    def include(self, scored: Rated) -> None:
        for name, value in scored.scores.items():
            self.largest[name] = max(abs(value), self.largest.get(name, 0.0))

    def __call__(self, scored: Rated) -> float:
        if len(scored.scores) == 1:
            return next(iter(scored.scores.values()))
        return sum(value / (self.largest[name] or 1.0) for name, value in scored.scores.items())


class Population:
    """The genotypes alive, oldest first; a new one retires the oldest."""

    def __init__(self, size: int) -> None:
        self.alive: deque[Scored] = deque(maxlen=size)

    def add(self, scored: Scored) -> None:
        self.alive.append(scored)

    def tournament(self, size: int, rng: random.Random) -> tuple[Genotype, Genotype]:
        """The best two of `size` genotypes drawn at random, the better one first."""
        drawn = rng.sample(list(self.alive), min(size, len(self.alive)))
        best = sorted(drawn, key=Ranking(self.alive), reverse=True)
        return best[0].genotype, best[min(1, len(best) - 1)].genotype


class Best:
    """The best genotypes seen, each once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ranking: list[Scored] = []
        """The best first."""
        self._worth = Ranking(())

    def add(self, scored: Scored) -> None:
        self._worth.include(scored)
        if all(scored.genotype != other.genotype for other in self.ranking):
            self.ranking = sorted([*self.ranking, scored], key=self._worth, reverse=True)[: self.size]


def sample(space: SearchSpace, rng: random.Random, allowed: Allowed, cheapest: Genotype) -> Genotype:
    """A random genotype within the budget: drawn uniformly, then crossed with the cheapest one until it fits."""
    genotype = space.sample(rng)
    while not allowed(genotype):
        genotype = space.crossover(cheapest, genotype, rng)
    return genotype


def mutate(space: SearchSpace, parent: Genotype, rng: random.Random, genes: Group, allowed: Allowed) -> Genotype:
    """A mutation of `parent` within the budget, or `parent` itself where none is found."""
    for _ in range(MUTATION_TRIES):
        if allowed(mutant := space.mutate(parent, rng, genes)):
            return mutant
    return parent


def generation(
    space: SearchSpace, population: Population, tournament: int, rng: random.Random, genes: Group, allowed: Allowed
) -> list[Offspring]:
    """The offspring of a tournament: a mutation of each of its best two, and their crossover if the budget allows."""
    first, second = population.tournament(tournament, rng)
    offspring = [Offspring(mutate(space, parent, rng, genes, allowed), "mutation") for parent in (first, second)]
    child = space.crossover(first, second, rng, genes)
    if allowed(child):
        offspring.append(Offspring(child, "crossover"))
    return offspring


def first_generation(
    space: SearchSpace,
    seeds: Sequence[Genotype],
    size: int,
    rng: random.Random,
    genes: Group,
    allowed: Allowed,
    cheapest: Genotype,
) -> Iterator[Offspring]:
    """The seeds and mutations of them in turn; without seeds, random genotypes."""
    if not seeds:
        yield from (Offspring(sample(space, rng, allowed, cheapest), "sample") for _ in range(size))
        return
    yield from (Offspring(seed, "seed") for seed in seeds[:size])
    for parent in islice(cycle(seeds), max(0, size - len(seeds))):
        yield Offspring(mutate(space, parent, rng, genes, allowed), "mutation")


def cheapest(space: SearchSpace, weigh: Callable[[Genotype], float]) -> Genotype:
    """The genotype of least cost: every block as narrow and as small as it can be, and of the cheapest kind."""
    genotype = space.build({place: options[0] for place, options in space.options.items()})
    for place in space.places("all"):
        if place[1] == "out":
            continue  # the narrowest network is the cheapest in any cost
        for value in space.options[place]:
            values = space.values(genotype) | {place: value}
            if weigh(other := space.build(values)) < weigh(genotype):
                genotype = other
    return genotype


class Evolution:
    """One phase as others drive it: it is asked for the next genotype to score, and told the scores in that order.

    What it answers depends on what it was told only, so it is the same however many genotypes are being scored
    meanwhile by whomever. Before its whole first generation is scored there is nothing to breed from.

    Args:
        phase: what changes, and how large its population is.
        rng: its randomness.
        space: the genotypes there are.
        allowed: whether one is within the budget.
        cheapest: one that surely is.
        seeds: what it starts from; without seeds it starts at random.
        keep: how many of the best it remembers.
    """

    def __init__(
        self,
        phase: Phase,
        rng: random.Random,
        space: SearchSpace,
        allowed: Allowed,
        cheapest: Genotype,
        seeds: Sequence[Genotype],
        keep: int,
    ) -> None:
        self.phase, self.rng, self.space, self.allowed = phase, rng, space, allowed
        self.population, self.best = Population(phase.population), Best(keep)
        self.asked = self.told = 0
        self.stale = 0
        """Genotypes told in a row that were known before."""
        self._waiting = first_generation(space, seeds, phase.population, rng, phase.genes, allowed, cheapest)

    def ask(self) -> Offspring | None:
        """The next genotype to score; None if it must be told more before."""
        offspring = next(self._waiting, None)
        if offspring is None:
            if self.told < self.phase.population:
                return None
            tournament, genes = self.phase.tournament, self.phase.genes
            self._waiting = iter(generation(self.space, self.population, tournament, self.rng, genes, self.allowed))
            offspring = next(self._waiting)
        self.asked += 1
        return offspring

    def tell(self, scored: Scored, new: bool) -> None:
        """The scores of the oldest genotype asked for and not yet told, and whether it was not known before."""
        self.told += 1
        self.stale = 0 if new else self.stale + 1
        self.population.add(scored)
        self.best.add(scored)
