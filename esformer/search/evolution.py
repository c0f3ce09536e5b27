"""Regularised evolution (REA) as section 3.5 refines it: tournament, several mutations at once, crossover, ageing."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

from esformer.choices import Group
from esformer.genotype import Genotype
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
    """A genotype and what the proxy of its phase gives it; higher is better."""

    genotype: Genotype
    score: float


class Population:
    """The genotypes alive, oldest first; a new one retires the oldest."""

    def __init__(self, size: int) -> None:
        self.alive: deque[Scored] = deque(maxlen=size)

    def add(self, scored: Scored) -> None:
        self.alive.append(scored)

    def tournament(self, size: int, rng: random.Random) -> tuple[Genotype, Genotype]:
        """The best two of `size` genotypes drawn at random, the better one first."""
        drawn = rng.sample(list(self.alive), min(size, len(self.alive)))
        best = sorted(drawn, key=lambda scored: scored.score, reverse=True)
        return best[0].genotype, best[min(1, len(best) - 1)].genotype


class Best:
    """The best genotypes seen, each once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ranking: list[Scored] = []
        """The best first."""

    def add(self, scored: Scored) -> None:
        if all(scored.genotype != other.genotype for other in self.ranking):
            self.ranking = sorted([*self.ranking, scored], key=lambda s: s.score, reverse=True)[: self.size]


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
) -> list[Offspring]:
    """The seeds and mutations of them in turn; without seeds, random genotypes."""
    if not seeds:
        return [Offspring(sample(space, rng, allowed, cheapest), "sample") for _ in range(size)]
    offspring = [Offspring(seed, "seed") for seed in seeds[:size]]
    parents = islice(cycle(seeds), max(0, size - len(seeds)))
    return offspring + [Offspring(mutate(space, parent, rng, genes, allowed), "mutation") for parent in parents]


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
