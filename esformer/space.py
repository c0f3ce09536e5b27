"""Which genotypes there are: a search space that samples, mutates and crosses them without ever leaving itself."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

from esformer.choices import EXTENDED, GROUPS, Choices, Gene, Group, choices_of
from esformer.errors import ESFormerError
from esformer.genotype import GENES_OF, Block, ConvBlock, Genotype, GenotypeError, TransformerLayer, check

Place = tuple[int, Gene]
"""A gene of a network: the block, counted from 0 through all stages, and the gene's name."""


@dataclass(frozen=True)
class SearchSpace:
    """The genotypes of one size (section 3.4): S0, S1 or S2, or one of them extended with the bottleneck (Table 5).

    Sampling, mutation and crossover are one and the same draw: uniformly one of the genotypes whose every gene lies
    among the options it is given. Widths must not decrease, so they are drawn together, exactly uniformly among all
    non-decreasing sequences of their options. The same `random.Random` gives the same genotype on every machine.
    """

    choices: Choices

    @classmethod
    def for_size(cls, size: str, extended: bool = False) -> "SearchSpace":
        """The space of a size; `extended` adds the standard residual bottleneck to the FFN kinds.

        Raises:
            ESFormerError: there is no such size.
        """
        return cls(choices_of(size + EXTENDED if extended else size))

    @property
    def name(self) -> str:
        return self.choices.space

    @cached_property
    def options(self) -> dict[Place, tuple[Any, ...]]:
        """Every gene of a network of this space, in order, and the values it may take."""
        blocks = [(s, b) for s, stage in enumerate(self.choices.stages) for b in range(stage.blocks)]
        return {
            (index, gene): allowed
            for index, (stage, block) in enumerate(blocks)
            for gene, allowed in self.choices.of(stage, block).items()
        }

    def places(self, genes: Group = "all") -> list[Place]:
        """The genes of one group (Table 1)."""
        if genes not in GROUPS:
            raise ESFormerError(f"there is no group of genes {genes!r}; there are {', '.join(GROUPS)}")
        return [place for place in self.options if place[1] in GROUPS[genes]]

    def __contains__(self, genotype: object) -> bool:
        if not isinstance(genotype, Genotype):
            return False
        try:
            check(genotype.stages, self.choices)
        except GenotypeError:
            return False
        return True

    @cached_property
    def cardinality(self) -> int:
        """How many genotypes the space holds, exactly."""
        others = prod(len(allowed) for (_, gene), allowed in self.options.items() if gene != "out")
        return others * sum(_completions(self._widths(self.options))[0])

    def sample(self, rng: random.Random) -> Genotype:
        """A genotype drawn uniformly from the whole space."""
        return self._draw(rng, self.options)

    def mutate(self, genotype: Genotype, rng: random.Random, genes: Group = "all") -> Genotype:
        """A copy in which some genes of the group are drawn anew; always another genotype.

        How many genes, which, and to what is uniform (section 3.5).
        """
        places = [place for place in self.places(genes) if len(self.options[place]) > 1]
        values = self.values(genotype)
        if not places:
            raise ESFormerError(f"space {self.name} leaves no {genes} gene a choice, so nothing can mutate")
        while True:
            chosen = set(rng.sample(places, rng.randint(1, len(places))))
            options = {
                place: (value,) if place not in chosen else self._others(place, value)
                for place, value in values.items()
            }
            mutant = self._draw(rng, options)
            if mutant.stages != genotype.stages:  # widths between equal neighbours may have had nowhere to go
                return mutant

    def crossover(self, a: Genotype, b: Genotype, rng: random.Random, genes: Group = "all") -> Genotype:
        """A copy of `a` in which each gene of the group comes from `a` or `b`, uniformly."""
        places, ours, theirs = set(self.places(genes)), self.values(a), self.values(b)
        options = {
            place: tuple(sorted({value, theirs[place]})) if place in places else (value,)
            for place, value in ours.items()
        }
        return self._draw(rng, options)

    def build(self, values: Mapping[Place, Any]) -> Genotype:
        """The genotype with the given value at every place of `options`."""
        blocks: list[Block] = []
        stages = []
        for stage in self.choices.stages:
            for b in range(stage.blocks):
                kind = TransformerLayer if stage.is_transformer(b) else ConvBlock
                blocks.append(kind(**{gene: values[len(blocks), gene] for gene in GENES_OF[kind]}))  # type: ignore[index]
            stages.append(tuple(blocks[-stage.blocks :]))
        return Genotype(self.name, tuple(stages))

    def values(self, genotype: Genotype) -> dict[Place, Any]:
        """The value of every gene of a genotype of this space, by its place; `build` is the way back."""
        if genotype not in self:
            raise ESFormerError(f"the genotype is of space {genotype.space}, not of {self.name}")
        blocks = list(genotype.blocks())
        return {(index, gene): getattr(blocks[index], gene) for index, gene in self.options}

    def _others(self, place: Place, value: Any) -> tuple[Any, ...]:
        allowed = self.options[place]
        return allowed if place[1] == "out" else tuple(other for other in allowed if other != value)

    def _widths(self, options: Mapping[Place, tuple[Any, ...]]) -> list[tuple[int, ...]]:
        return [allowed for (_, gene), allowed in options.items() if gene == "out"]

    def _draw(self, rng: random.Random, options: Mapping[Place, tuple[Any, ...]]) -> Genotype:
        values = {
            place: allowed[0] if len(allowed) == 1 else rng.choice(allowed)
            for place, allowed in options.items()
            if place[1] != "out"
        }
        widths = _draw_non_decreasing(rng, self._widths(options))
        return self.build(values | {(index, "out"): width for index, width in enumerate(widths)})


def _completions(options: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each position and option: in how many non-decreasing ways the sequence can go on from there."""
    counts = [[1] * len(options[-1])]
    for here, after in zip(reversed(options[:-1]), reversed(options[1:]), strict=True):
        row, total, j = [], 0, len(after)
        for width in reversed(here):
            while j and after[j - 1] >= width:
                j -= 1
                total += counts[-1][j]
            row.append(total)
        counts.append(row[::-1])
    return counts[::-1]


def _draw_non_decreasing(rng: random.Random, options: Sequence[Sequence[int]]) -> list[int]:
    """One of all non-decreasing sequences that take one of the (ascending) options at each position, uniformly."""
    drawn: list[int] = []
    for here, counts in zip(options, _completions(options), strict=True):
        possible = [(w, n) for w, n in zip(here, counts, strict=True) if not drawn or w >= drawn[-1]]
        ticket = rng.randrange(sum(n for _, n in possible)) if len(possible) > 1 else 0
        running = accumulate(n for _, n in possible)
        drawn.append(next(width for (width, _), total in zip(possible, running, strict=True) if ticket < total))
    return drawn
