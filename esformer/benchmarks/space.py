"""A table of trained architectures as a space: a search of it takes seconds and ends in an accuracy that is known."""

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from esformer.benchmarks.architecture import GeneArchitecture, NetworkSettings
from esformer.benchmarks.base import Benchmark, BenchmarkError, Dataset, GeneBenchmark
from esformer.benchmarks.gene_space import TRIES, GeneSpace
from esformer.choices import Group
from esformer.genotype import Genotype
from esformer.model.cost import Cost
from esformer.topology import Topology

NEAREST = 8
"""Architectures of a sparse table that one mutates to."""


class TableSpace(GeneSpace):
    """The architectures of a table, for `esformer.search`: genes are drawn, and proxies see the networks as trained.

    A table may hold a part of the benchmark only; nothing outside it is ever drawn, nor a network
    whose output does not depend on the image (`is_connected`).

    Args:
        benchmark: whose table it is.
        table: the file; None has no accuracies, and serves to build networks.
        dataset: on which the accuracies were reached, by default the benchmark's first.

    Raises:
        BenchmarkError: the table cannot be read, or the benchmark has no genes.

    Examples:
        >>> from esformer import Schedule, benchmarks, search
        >>> space = TableSpace(benchmarks.get("nats-sss"), "sss.csv")  # doctest: +SKIP
        >>> plain = Schedule("evaluations", starts=1, start_length=500, total=500, start_proxy="naswot")
        >>> space.standing(search(space, Budget(), plain).genotype).regret  # doctest: +SKIP
    """

    def __init__(self, benchmark: Benchmark, table: str | os.PathLike[str] | None, dataset: str | None = None) -> None:
        if not isinstance(benchmark, GeneBenchmark):
            raise BenchmarkError(f"{benchmark.name} cannot be searched: its architectures are not made of genes")
        self.benchmark, self.dataset = benchmark, dataset or next(iter(benchmark.datasets))
        self.name = benchmark.name
        self.genes, self.group = benchmark.genes, benchmark.group
        images = benchmark.dataset(self.dataset)
        self.img_size, self.num_classes = images.img_size, images.num_classes
        self._table = table
        super().__init__(table, None if table is None else self.dataset)
        self._listed = dict(zip(benchmark.same([*self._accuracies]), self._accuracies, strict=True))

    def _know(self, accuracies: Mapping[str, float]) -> None:
        try:
            super()._know(accuracies)
        except BenchmarkError as error:
            raise BenchmarkError(f"{self._table}: {error}") from None

    def read(self, table: Path, dataset: str) -> dict[str, float]:
        return {entry.architecture: entry.accuracy for entry in self.benchmark.read(table, dataset)}

    @property
    def scores(self) -> Mapping[str, Callable[[GeneArchitecture], float]]:
        """Costs, the accuracies of the table, and what the benchmark counts."""
        return {**super().scores, **{name: partial(_counted, count) for name, count in self.benchmark.counts.items()}}

    def network(self, values: Sequence[str]) -> nn.Module:
        return self.benchmark.network(self.spell(values), self.dataset)

    def mutate(
        self, architecture: GeneArchitecture, rng: random.Random, genes: Group = "all", most: int | None = None
    ) -> GeneArchitecture:
        """As in any space; of a table that holds hardly any of it, one of those that differ in the fewest genes."""
        if not self._is_sparse:
            return super().mutate(architecture, rng, genes, most)
        near = self._nearest(self._parent(architecture), self._places(genes), most)
        return self._spelled(rng.choice(near)) if near else architecture

    def trained_network(self, values: Sequence[str], settings: NetworkSettings) -> nn.Module:
        self.benchmark.datasets = {self.dataset: Dataset(settings.num_classes, settings.img_size)}  # type: ignore[misc]
        return super().trained_network(values, settings)

    def subject(self, values: Sequence[str]) -> nn.Module | Genotype:
        return self.benchmark.subject(self.spell(values), self.dataset)

    def topology(self, values: Sequence[str]) -> Topology:
        return self.benchmark.topology(self.spell(values))

    def is_valid(self, values: Sequence[str]) -> bool:
        return self.benchmark.is_connected(self.spell(values))

    def spell(self, values: Sequence[str]) -> str:
        """The architecture of the table that is the network of these genes; another notation, if there is none."""
        notation = self.benchmark.spell(values)
        if notation in self._accuracies:
            return notation
        return self._listed.get(self.benchmark.same([notation])[0], notation)

    def values(self, notation: str) -> tuple[str, ...]:
        return self.benchmark.values(notation)

    def _may_draw(self, notation: str) -> bool:
        return self.benchmark.is_connected(notation)

    def count(self, values: Sequence[str]) -> Cost:
        notation = self.spell(values)
        return Cost(self.benchmark.params(notation, self.dataset), self.benchmark.macs(notation, self.dataset))

    @property
    def _is_sparse(self) -> bool:
        """Whether even TRIES draws find something in the table once in a thousand times only."""
        return 0 < len(self._drawn) * TRIES * 1000 < math.prod(map(len, self.genes))

    @cached_property
    def _drawn_values(self) -> list[tuple[str, ...]]:
        return [self.values(notation) for notation in self._drawn]

    def _nearest(self, values: Sequence[str], places: Sequence[int], most: int | None) -> list[tuple[str, ...]]:
        """Those of the table that differ in the fewest genes, at most `most`, all of them at some places."""
        apart = {
            other: [place for place, (a, b) in enumerate(zip(values, other, strict=True)) if a != b]
            for other in self._drawn_values
        }
        limit, allowed = most or len(self.genes), {*places}
        near = [other for other, where in apart.items() if 0 < len(where) <= limit and allowed.issuperset(where)]
        return sorted(near, key=lambda other: len(apart[other]))[:NEAREST]


def _counted(count: Callable[[str], float], architecture: GeneArchitecture) -> float:
    return count(architecture.notation)
