"""Spaces whose networks are made of genes: what tables, DARTS and other people's spaces have in common."""

import math
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from operator import contains
from pathlib import Path

from torch import Tensor, nn

from esformer.benchmarks.architecture import SCALE, GeneArchitecture, NetworkSettings, Standing, digest, said_of
from esformer.benchmarks.base import BenchmarkError, shown
from esformer.benchmarks.tables import entries, read_csv
from esformer.choices import Group
from esformer.genotype import Genotype
from esformer.model.cost import Budget, Cost
from esformer.proxies import Proxy, ProxyError, Subject, score
from esformer.proxies.macs import cost_of
from esformer.topology import Topology

GROUPS: tuple[Group, ...] = ("topology", "size")
TRIES = 1000
"""How often genes are drawn for an architecture that is of the space."""


class GeneSpace(ABC):
    """Networks made of genes, each with choices of its own: derive from it, and say what the genes build.

    An architecture is written as the values of its genes with `-` between them. Where a table says accuracies, nothing
    outside it is drawn, `accuracy` is a guide beside the proxies, and a search ends by saying how good its find is.

    Args:
        table: a CSV file of trained networks, with columns `architecture` and `accuracy` (in percent); there need be
            none.
        dataset: the column that has the accuracies, if there are several.

    Raises:
        BenchmarkError: the table cannot be read, or has architectures that are none.

    Examples:
        >>> class Depths(GeneSpace):
        ...     name, genes = "depths", (("1", "2"), ("1", "2", "3"))
        ...
        ...     def network(self, values):
        ...         ...  # of blocks as many as the values say
        >>> Depths().cardinality, str(Depths().sample(random.Random(1)))
        (6, '1-3')
    """

    name: str
    """What `--space` calls it."""
    genes: Sequence[Sequence[str]]
    """The values of each gene."""
    group: Group | Sequence[Group] = "topology"
    """What the genes are, of topology or of size: all of them, or one after the other."""
    img_size: int = 32
    """Pixels of the images on which its networks are scored."""
    num_classes: int = 10
    """Classes of its networks."""

    def __init__(self, table: str | os.PathLike[str] | None = None, dataset: str | None = None) -> None:
        self._check_genes()
        if dataset is not None:
            if table is None:
                raise BenchmarkError(f"space {self.name} has no dataset {dataset!r} without a table of accuracies")
            self.name = f"{self.name}/{dataset}"
        self._costs: dict[str, Cost] = {}
        self._values_of: dict[str, tuple[str, ...]] = {}
        self._know({} if table is None else self.read(Path(table), dataset or "accuracy"))

    def _check_genes(self) -> None:
        """Refuse genes that none can be drawn from, or that no notation can tell."""
        name = self.name
        if not self.genes:
            raise BenchmarkError(f"space {name} has no genes")
        for place, gene in enumerate(self.genes, 1):
            if not gene or len({*gene}) < len(gene) or not all(isinstance(value, str) and value for value in gene):
                raise BenchmarkError(f"gene {place} of space {name} is {gene!r}; it must be some words, all different")
        if len(self._groups) != len(self.genes) or not {*self._groups} <= {*GROUPS}:
            raise BenchmarkError(
                f"the groups of space {name} are {self.group!r}; they must be {' or '.join(GROUPS)}, one for all its"
                f" {len(self.genes)} genes or one for each"
            )

    def _know(self, accuracies: Mapping[str, float]) -> None:
        """Take the accuracies of a table."""
        self._accuracies = dict(accuracies)
        self._drawn = sorted(filter(self._may_draw, self._accuracies))
        if self._accuracies and not self._drawn:
            raise BenchmarkError(f"none of the architectures that the table of {self.name} holds may be drawn")

    @abstractmethod
    def network(self, values: Sequence[str]) -> nn.Module:
        """The network with these genes and PyTorch's initial weights; takes B, 3, H, W.

        Args:
            values: a value of each gene.
        """

    def trained_network(self, values: Sequence[str], settings: NetworkSettings) -> nn.Module:
        """The network with these genes as it is trained: by default `network`, for other classes and another size.

        The space is opened for this network alone: its `num_classes` and `img_size` become those of the images.

        Args:
            values: a value of each gene.
            settings: what is asked for.

        Raises:
            BenchmarkError: it cannot be had.
        """
        if asked := [name for name in SCALE if getattr(settings, name) is not None]:
            raise BenchmarkError(f"space {self.name} leaves no {asked[0]} open; leave {asked[0]} out")
        self.num_classes, self.img_size = settings.num_classes, settings.img_size
        return self.network(values)

    def subject(self, values: Sequence[str]) -> nn.Module | Genotype:
        """What proxies score: the network; or a genotype, which is scored as a search of ESFormers scores it.

        Args:
            values: a value of each gene.
        """
        return self.network(values)

    def topology(self, values: Sequence[str]) -> Topology:
        """Its optional operations, which is all that `sed` looks at.

        Args:
            values: a value of each gene.

        Raises:
            ProxyError: the space does not say.
        """
        raise ProxyError(f"space {self.name} does not say which operations its networks have (`topology`)")

    def is_valid(self, values: Sequence[str]) -> bool:
        """Whether the space has an architecture with these genes; other ones are never drawn.

        Args:
            values: a value of each gene.
        """
        return True

    def spell(self, values: Sequence[str]) -> str:
        """The architecture with these genes, as it is written.

        Args:
            values: a value of each gene.
        """
        return "-".join(values)

    def values(self, notation: str) -> tuple[str, ...]:
        """The genes of an architecture; `spell` is the way back.

        Args:
            notation: the architecture, as it is written.

        Raises:
            BenchmarkError: there is no such architecture.
        """
        values = tuple(notation.split("-"))
        if len(values) != len(self.genes) or not all(map(contains, self.genes, values)):
            example = self.spell([gene[0] for gene in self.genes])
            raise BenchmarkError(f"{notation[:200]!r} is no architecture of {self.name}; it must look like {example}")
        return values

    def read(self, table: Path, dataset: str) -> Mapping[str, float]:
        """The accuracies of a table, in percent, by architecture.

        Args:
            table: the file.
            dataset: the column that has them.

        Raises:
            BenchmarkError: it is not there, or not a table of this space.
        """
        rows = ((architecture, value, None) for architecture, value in read_csv(table, "architecture", dataset))
        known = {entry.architecture: entry.accuracy for entry in entries(table, rows, self._checked)}
        if max(known.values()) <= 1:
            raise BenchmarkError(f"{table}: no accuracy is above 1 %; they must be in percent")
        return known

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of genes that it has."""
        return tuple(group for group in GROUPS if group in self._groups)

    @property
    def cardinality(self) -> int:
        """How many architectures are drawn from; without a table, how many ways there are to choose genes."""
        return len(self._drawn) or math.prod(map(len, self.genes))

    @property
    def scores(self) -> Mapping[str, Callable[[GeneArchitecture], float]]:
        """Costs, which no network need be built for twice, and what a table says.

        A search guided by `accuracy` shows what the algorithm does with a perfect proxy.
        """
        costs = {"parameters": lambda one: self.cost(one).params, "macs": lambda one: self.cost(one).macs}
        return costs | ({"accuracy": self.accuracy} if self._accuracies else {})

    @cached_property
    def digest(self) -> str:
        """Of all that it knows, in whatever order a table has it: 16 hexadecimal digits."""
        return digest(sorted(self._accuracies.items()) or [list(gene) for gene in self.genes])

    def __contains__(self, architecture: object) -> bool:
        return (
            isinstance(architecture, GeneArchitecture)
            and architecture.space == self.name
            and self._has(architecture.notation)
        )

    def sample(self, rng: random.Random) -> GeneArchitecture:
        """An architecture drawn uniformly: of the table, or of the choices of the genes.

        Args:
            rng: the only source of chance; it moves on.

        Raises:
            BenchmarkError: of what the genes can be, hardly anything is valid.
        """
        if self._drawn:
            return GeneArchitecture(self.name, rng.choice(self._drawn))
        for _ in range(TRIES):
            if self.is_valid(values := tuple(rng.choice(gene) for gene in self.genes)):
                return self._spelled(values)
        raise BenchmarkError(f"none of {TRIES:,} architectures drawn from {self.name} is valid (`is_valid`)")

    def mutate(
        self, architecture: GeneArchitecture, rng: random.Random, genes: Group = "all", most: int | None = None
    ) -> GeneArchitecture:
        """Another architecture in which some genes have another value: how many, which and what is uniform.

        Where the space lacks whatever is drawn, the architecture itself.

        Args:
            architecture: one of this space.
            rng: the only source of chance; it moves on.
            genes: all, or a group of genes that the space has.
            most: so many genes at most change; None for all of the group.
        """
        values, places = self._parent(architecture), self._places(genes)
        for _ in range(TRIES if places else 0):
            mutant = list(values)
            for place in rng.sample(places, rng.randint(1, min(most or len(places), len(places)))):
                mutant[place] = rng.choice([value for value in self.genes[place] if value != values[place]])
            if self._has(self.spell(mutant)):
                return self._spelled(mutant)
        return architecture

    def crossover(
        self, a: GeneArchitecture, b: GeneArchitecture, rng: random.Random, genes: Group = "all"
    ) -> GeneArchitecture:
        """A copy of `a` in which each gene of a group comes from `a` or `b`; `a` itself where the space lacks that.

        Args:
            a: a parent.
            b: the other parent.
            rng: the only source of chance; it moves on.
            genes: all, or a group of genes that the space has.
        """
        child, other = list(self._parent(a)), self._parent(b)
        for place in self._places(genes, several=False):
            child[place] = rng.choice((child[place], other[place]))
        return self._spelled(child) if self._has(self.spell(child)) else a

    def cheapest(self, weigh: Callable[[GeneArchitecture], float]) -> GeneArchitecture:
        """The architecture of least cost: of the table, or found gene by gene until no other value of one costs less.

        Args:
            weigh: what one costs.
        """
        if self._drawn:
            return min((GeneArchitecture(self.name, notation) for notation in self._drawn), key=weigh)
        best = self.sample(random.Random(0))
        while (cheaper := min(self._neighbours(best), key=weigh, default=best)) != best:
            if weigh(cheaper) >= weigh(best):
                break
            best = cheaper
        return best

    def count(self, values: Sequence[str]) -> Cost:
        """Parameters and MACs of a network, which is built to count them; a closed form is faster.

        Args:
            values: a value of each gene.
        """
        with said_of(self.name, self.spell(values)):
            return cost_of(self.network(values), self.img_size)

    def cost(self, architecture: GeneArchitecture) -> Cost:
        """Parameters and MACs of its network, counted once.

        Args:
            architecture: one of this space.
        """
        if (known := self._costs.get(architecture.notation)) is None:
            self._costs[architecture.notation] = known = self.count(self._parent(architecture))
        return known

    def score(
        self,
        proxy: Proxy,
        architecture: GeneArchitecture,
        seed: int,
        draws: int | None = None,
        images: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> float:
        """What a proxy gives its network.

        Args:
            proxy: the proxy.
            architecture: one of this space.
            seed: another one draws other weights and inputs.
            draws: how many measurements it is the mean of; by default as many as the proxy's paper takes.
            images: B, 3, H, W, for a proxy that needs a batch.
            labels: their classes, B.

        Raises:
            ProxyError: it cannot be scored.
        """
        values, name = self._parent(architecture), architecture.notation
        with said_of(self.name, name):
            subject: Subject = shown(proxy, seed, lambda: self.subject(values), lambda: self.topology(values))
            identity = None if isinstance(subject, Genotype) else name
            return score(proxy, subject, seed, self.img_size, images, labels, identity=identity, draws=draws)

    def accuracy(self, architecture: GeneArchitecture) -> float:
        """The accuracy of the trained network, in percent.

        Args:
            architecture: one of the table.
        """
        return self._accuracies[architecture.notation]

    def standing(self, architecture: GeneArchitecture, budget: Budget = Budget()) -> Standing | None:  # noqa: B008
        """How good an architecture is among all that a budget allows; None where there is no table.

        Args:
            architecture: one of this space.
            budget: what may be compared.
        """
        if not self._accuracies:
            return None
        every = (GeneArchitecture(self.name, notation) for notation in self._accuracies)
        free = budget.params is None and budget.macs is None
        rivals = [self.accuracy(one) for one in every if free or budget.allows(self.cost(one))]
        accuracy, best = self.accuracy(architecture), max(rivals)
        rank = 1 + sum(rival > accuracy for rival in rivals)
        return Standing(accuracy, rank, len(rivals), best, round(best - accuracy, 6))

    @cached_property
    def _groups(self) -> tuple[Group, ...]:
        """The group of each gene."""
        return (self.group,) * len(self.genes) if isinstance(self.group, str) else tuple(self.group)

    def _places(self, genes: Group, several: bool = True) -> list[int]:
        """Where the genes of a group stand; of several values, those that can change."""
        if genes not in ("all", *self.groups):
            raise BenchmarkError(f"space {self.name} has no {genes} genes; it has {' and '.join(self.groups)} genes")
        of_group = [place for place, group in enumerate(self._groups) if genes in ("all", group)]
        return [place for place in of_group if len(self.genes[place]) > 1] if several else of_group

    def _has(self, notation: str) -> bool:
        """Whether an architecture may be drawn."""
        with suppress(BenchmarkError):
            return (not self._accuracies or notation in self._accuracies) and self._may_draw(notation)
        return False

    def _may_draw(self, notation: str) -> bool:
        return self.is_valid(self.values(notation))

    def _checked(self, notation: str) -> str:
        return self.spell(self.values(notation))

    def _spelled(self, values: Sequence[str]) -> GeneArchitecture:
        return GeneArchitecture(self.name, self.spell(values))

    def _parent(self, architecture: GeneArchitecture) -> tuple[str, ...]:
        """The genes of an architecture of this space, read once."""
        if architecture.space != self.name or (known := self._values_of.get(architecture.notation)) is None:
            if architecture not in self:
                raise BenchmarkError(f"{str(architecture)[:200]} is no architecture of space {self.name}")
            self._values_of[architecture.notation] = known = self.values(architecture.notation)
        return known

    def _neighbours(self, architecture: GeneArchitecture) -> Iterator[GeneArchitecture]:
        """Every architecture of which one gene differs."""
        values = self.values(architecture.notation)
        for place, gene in enumerate(self.genes):
            for value in gene:
                changed = (*values[:place], value, *values[place + 1 :])
                if value != values[place] and self.is_valid(changed):
                    yield self._spelled(changed)
