"""Regularised evolution (REA) as section 3.5 refines it: tournament, several mutations at once, crossover, ageing.

A search for a family differs in its ranking alone (`esformer.search.ranking`): tournaments are won by NSGA-II's order
of cost and worth.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Literal

from esformer.guide import Guide
from esformer.search.ranking import Best, Front, FrontRanking, Ranking, Scored
from esformer.search.schedule import Phase
from esformer.search.space import Architecture, Space

Origin = Literal["sample", "seed", "mutation", "crossover"]
Allowed = Callable[[Architecture], bool]

MUTATION_TRIES = 1000
"""How often a mutation that exceeds the budget is drawn anew before the parent itself stands in for it."""


@dataclass(frozen=True)
class Offspring:
    """A genotype that waits for its score, and where it comes from."""

    genotype: Architecture
    origin: Origin


class Population:
    """The genotypes alive, oldest first; a new one retires the oldest.

    Args:
        size: how many are alive.
        guide: what ranks them.
        ranking: what a tournament is won by.
    """

    def __init__(self, size: int, guide: Guide, ranking: type[Ranking] | type[FrontRanking] = Ranking) -> None:
        self.alive: deque[Scored] = deque(maxlen=size)
        self._guide, self._ranking = guide, ranking

    def add(self, scored: Scored) -> None:
        self.alive.append(scored)

    def tournament(self, size: int, rng: random.Random) -> tuple[Architecture, Architecture]:
        """The best two of `size` genotypes drawn at random, the better one first."""
        drawn = rng.sample(list(self.alive), min(size, len(self.alive)))
        best = sorted(drawn, key=self._ranking(self._guide, self.alive), reverse=True)
        return best[0].genotype, best[min(1, len(best) - 1)].genotype


def sample(space: Space, rng: random.Random, allowed: Allowed, cheapest: Architecture) -> Architecture:
    """A random genotype within the budget: drawn uniformly, then crossed with the cheapest one until it fits."""
    genotype = space.sample(rng)
    while not allowed(genotype):
        genotype = space.crossover(cheapest, genotype, rng)
    return genotype


def mutate(space: Space, parent: Architecture, rng: random.Random, phase: Phase, allowed: Allowed) -> Architecture:
    """A mutation of `parent` within the budget, or `parent` itself where none is found."""
    for _ in range(MUTATION_TRIES):
        if allowed(mutant := space.mutate(parent, rng, phase.genes, phase.mutated_genes)):
            return mutant
    return parent


def generation(
    space: Space, population: Population, phase: Phase, rng: random.Random, allowed: Allowed
) -> list[Offspring]:
    """The offspring of a tournament: a mutation of each of its best two, and their crossover if the budget allows."""
    first, second = population.tournament(phase.tournament, rng)
    offspring = [Offspring(mutate(space, parent, rng, phase, allowed), "mutation") for parent in (first, second)]
    if phase.crossover and allowed(child := space.crossover(first, second, rng, phase.genes)):
        offspring.append(Offspring(child, "crossover"))
    return offspring


def first_generation(
    space: Space,
    seeds: Sequence[Architecture],
    phase: Phase,
    rng: random.Random,
    allowed: Allowed,
    cheapest: Architecture,
) -> Iterator[Offspring]:
    """The seeds and mutations of them in turn; without seeds, random genotypes."""
    if not seeds:
        yield from (Offspring(sample(space, rng, allowed, cheapest), "sample") for _ in range(phase.population))
        return
    yield from (Offspring(seed, "seed") for seed in seeds[: phase.population])
    for parent in islice(cycle(seeds), max(0, phase.population - len(seeds))):
        yield Offspring(mutate(space, parent, rng, phase, allowed), "mutation")


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
        family: it is after the whole front of cost and worth, and remembers that, instead of after the best.
    """

    def __init__(
        self,
        phase: Phase,
        rng: random.Random,
        space: Space,
        allowed: Allowed,
        cheapest: Architecture,
        seeds: Sequence[Architecture],
        keep: int,
        family: bool = False,
    ) -> None:
        self.phase, self.rng, self.space, self.allowed = phase, rng, space, allowed
        self.population = Population(phase.population, phase.guide, FrontRanking if family else Ranking)
        self.best: Best | Front = Front(phase.guide) if family else Best(phase.guide, keep)
        self.asked = self.told = 0
        self.stale = 0
        """Genotypes told in a row that were known before."""
        first = first_generation(space, seeds, phase, rng, allowed, cheapest)
        if family and not seeds:  # no random genotype comes near the cheap end of the front
            first = islice(chain([Offspring(cheapest, "sample")], first), phase.population)
        self._waiting = first

    def ask(self) -> Offspring | None:
        """The next genotype to score; None if it must be told more before."""
        offspring = next(self._waiting, None)
        if offspring is None:
            if self.told < self.phase.population:
                return None
            self._waiting = iter(generation(self.space, self.population, self.phase, self.rng, self.allowed))
            offspring = next(self._waiting)
        self.asked += 1
        return offspring

    def tell(self, scored: Scored, new: bool) -> None:
        """The scores of the oldest genotype asked for and not yet told, and whether it was not known before."""
        self.told += 1
        self.stale = 0 if new else self.stale + 1
        self.population.add(scored)
        self.best.add(scored)
