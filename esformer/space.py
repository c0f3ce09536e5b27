"""Which genotypes there are: a search space that samples, mutates and crosses them without ever leaving itself."""

import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from math import prod
from typing import Any

from esformer.choices import EXTENDED, GROUPS, SPACES, Choices, Gene, Group, choices_of
from esformer.errors import ESFormerError
from esformer.genotype import Block, ConvBlock, Genotype, GenotypeError, TransformerLayer, check, unchecked

Place = tuple[int, Gene]
"""A gene of a network: the block, counted from 0 through all stages, and the gene's name."""


@dataclass(frozen=True)
class SearchSpace:
    """The genotypes of one size (section 3.4): S0, S1 or S2, or one of them extended with the bottleneck (Table 5).

    Sampling, mutation and crossover are one and the same draw: uniformly one of the genotypes whose every gene lies
    among the options it is given. Widths must not decrease, so they are drawn together, exactly uniformly among all
    non-decreasing sequences of their options. The same `random.Random` gives the same genotype on every machine.

    Args:
        choices: the values that each gene may take; `for_size` has those of the sizes.

    Examples:
        >>> space, rng = SearchSpace.for_size("S0"), random.Random(0)
        >>> child = space.crossover(space.sample(rng), space.sample(rng), rng)
        >>> space.mutate(child, rng, genes="topology") in space
        True
        >>> f"{space.cardinality:.1e} genotypes"
        '3.6e+34 genotypes'
    """

    choices: Choices

    @classmethod
    def for_size(cls, size: str, extended: bool = False) -> "SearchSpace":
        """The space of a size; `extended` adds the standard residual bottleneck to the FFN kinds.

        Args:
            size: its name, such as S0.
            extended: add the standard residual bottleneck to the FFN kinds (Table 5).

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
        blocks = chain.from_iterable(self.choices.options)
        return {(index, gene): allowed for index, block in enumerate(blocks) for gene, allowed in block.items()}

    def places(self, genes: Group = "all") -> list[Place]:
        """The genes of one group (Table 1).

        Args:
            genes: topology, size or all.
        """
        _check_group(genes)
        return [place for place in self.options if place[1] in GROUPS[genes]]

    def __contains__(self, genotype: object) -> bool:
        if not isinstance(genotype, Genotype):
            return False
        if self._is_standard and genotype.space == self.name:
            return True
        try:
            check(genotype.stages, self.choices)
        except GenotypeError:
            return False
        return True

    @cached_property
    def cardinality(self) -> int:
        """How many genotypes the space holds, exactly."""
        others = prod(len(allowed) for (_, gene), allowed in self.options.items() if gene != "out")
        return others * _ways([allowed for (_, gene), allowed in self.options.items() if gene == "out"])[0][-1]

    def sample(self, rng: random.Random) -> Genotype:
        """A genotype drawn uniformly from the whole space.

        Args:
            rng: the only source of chance; it moves on.
        """
        allowed = list(self.options.values())
        return self._genotype(self._draw(rng, [options[0] for options in allowed], dict(enumerate(allowed))))

    def mutate(self, genotype: Genotype, rng: random.Random, genes: Group = "all", most: int | None = None) -> Genotype:
        """A copy in which some genes of the group are drawn anew; always another genotype.

        How many genes, which, and to what is uniform (section 3.5).

        Args:
            genotype: one of this space; it stays as it is.
            rng: the only source of chance; it moves on.
            genes: which group may change: topology, size or all.
            most: so many genes at most are drawn anew; None for all of the group.
        """
        _check_group(genes)
        row, free = self._row(genotype), self._free[genes]
        if not free:
            raise ESFormerError(f"space {self.name} leaves no {genes} gene a choice, so nothing can mutate")
        while True:
            chosen = sorted(rng.sample(free, rng.randint(1, min(most or len(free), len(free)))))
            mutant = self._draw(rng, row, {i: self._others[i][row[i]] for i in chosen})
            if mutant != row:  # widths between equal neighbours may have had nowhere to go
                return self._genotype(mutant)

    def crossover(self, a: Genotype, b: Genotype, rng: random.Random, genes: Group = "all") -> Genotype:
        """A copy of `a` in which each gene of the group comes from `a` or `b`, uniformly.

        Args:
            a: gives all genes of other groups.
            b: the other parent.
            rng: the only source of chance; it moves on.
            genes: which group is mixed: topology, size or all.
        """
        _check_group(genes)
        ours, theirs = self._row(a), self._row(b)
        either = {i: tuple(sorted((ours[i], theirs[i]))) for i in self._free[genes] if ours[i] != theirs[i]}
        return self._genotype(self._draw(rng, ours, either))

    def cheapest(self, weigh: Callable[[Genotype], float]) -> Genotype:
        """The genotype of least cost: every block as narrow and as small as it can be, and of the cheapest kind.

        Args:
            weigh: what a genotype costs.
        """
        genotype = self.build({place: options[0] for place, options in self.options.items()})
        for place in self.places("all"):
            if place[1] == "out":
                continue  # the narrowest network is the cheapest in any cost
            for value in self.options[place]:
                other = self.build(self.values(genotype) | {place: value})
                if weigh(other) < weigh(genotype):
                    genotype = other
        return genotype

    def build(self, values: Mapping[Place, Any]) -> Genotype:
        """The genotype with the given value at every place of `options`.

        Args:
            values: one of its options for every place.
        """
        return Genotype(self.name, self._stages([values[place] for place in self.options]))

    def values(self, genotype: Genotype) -> dict[Place, Any]:
        """The value of every gene of a genotype of this space, by its place; `build` is the way back.

        Args:
            genotype: one of this space.
        """
        return dict(zip(self.options, self._row(genotype), strict=True))

    # A search draws thousands of genotypes between scores. So in here a genotype is a row, the list of its values in
    # the order of `options`; a gene is an index into it; and whatever depends on the space alone is in a table.

    def _row(self, genotype: Genotype) -> list[Any]:
        """The row of a genotype, which must be of this space."""
        if genotype not in self:
            raise ESFormerError(f"the genotype is of space {genotype.space}, not of {self.name}")
        return [value for block in genotype.blocks() for value in block.genes().values()]

    def _stages(self, row: list[Any]) -> tuple[tuple[Block, ...], ...]:
        """The blocks of a row."""
        return tuple(tuple([kind(*row[genes]) for kind, genes in stage]) for stage in self._shape)

    def _genotype(self, row: list[Any]) -> Genotype:
        """The genotype of a row that was drawn here, and so is valid, unless the space is not what its name says."""
        make = unchecked if self._is_standard else Genotype
        return make(self.name, self._stages(row))

    def _draw(self, rng: random.Random, row: list[Any], options: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """A copy of the row in which each gene of `options`, which are in order, is drawn anew from its options."""
        drawn, widths = row.copy(), self._widths
        for i, allowed in options.items():
            if i not in widths:
                drawn[i] = allowed[0] if len(allowed) == 1 else rng.choice(allowed)
        if not widths.keys().isdisjoint(options):
            redrawn = _draw_non_decreasing(rng, [options.get(i) or (row[i],) for i in widths])
            for i, width in zip(widths, redrawn, strict=True):
                drawn[i] = width
        return drawn

    @cached_property
    def _is_standard(self) -> bool:
        """Whether these are the very choices of the space's name, which every genotype of that name obeys."""
        return self.name in SPACES and self.choices is choices_of(self.name)

    @cached_property
    def _shape(self) -> list[list[tuple[type[Block], slice]]]:
        """The kind of each block, stage by stage, and where in a row its genes are."""
        shape, end = [], 0
        for s, stage in enumerate(self.choices.stages):
            kinds = []
            for b in range(stage.blocks):
                start, end = end, end + len(self.choices.of(s, b))
                kinds.append((TransformerLayer if stage.is_transformer(b) else ConvBlock, slice(start, end)))
            shape.append(kinds)
        return shape

    @cached_property
    def _widths(self) -> dict[int, None]:
        """Where in a row the widths are, in order."""
        return dict.fromkeys(i for i, (_, gene) in enumerate(self.options) if gene == "out")

    @cached_property
    def _free(self) -> dict[str, list[int]]:
        """Where in a row the genes of each group are that have a choice."""
        genes = [(i, gene) for i, ((_, gene), allowed) in enumerate(self.options.items()) if len(allowed) > 1]
        return {group: [i for i, gene in genes if gene in members] for group, members in GROUPS.items()}

    @cached_property
    def _others(self) -> list[dict[Any, tuple[Any, ...]]]:
        """What a mutation turns each value of each gene into: another value, but any where it is a width."""
        return [
            {value: allowed if gene == "out" else tuple(v for v in allowed if v != value) for value in allowed}
            for (_, gene), allowed in self.options.items()
        ]


def _check_group(genes: str) -> None:
    if genes not in GROUPS:
        raise ESFormerError(f"there is no group of genes {genes!r}; there are {', '.join(GROUPS)}")


def _ways(options: Sequence[Sequence[int]]) -> list[list[int]]:
    """At [i][n]: in how many non-decreasing ways a sequence goes on with one of the n widest options of position i."""
    ways = [list(range(len(options[-1]) + 1))]
    for here, after in zip(reversed(options[:-1]), reversed(options[1:]), strict=True):
        rest = ways[-1]
        if here == after:
            ways.append(list(accumulate(rest)))
        else:
            ways.append([0, *accumulate([rest[len(after) - bisect_left(after, width)] for width in reversed(here)])])
    return ways[::-1]


def _draw_non_decreasing(rng: random.Random, options: Sequence[Sequence[int]]) -> list[int]:
    """One of all non-decreasing sequences that take one of the (ascending) options at each position, uniformly."""
    drawn: list[int] = []
    for here, ways in zip(options, _ways(options), strict=True):
        possible = len(here) - bisect_left(here, drawn[-1]) if drawn else len(here)
        wider = 0  # options that are wider than the one drawn
        if possible > 1:
            ticket = rng.randrange(ways[possible])  # one of the ways, numbered from those of the narrowest option on
            wider = bisect_left(ways, ways[possible] - ticket) - 1
        drawn.append(here[-1 - wider])
    return drawn
