"""A table of trained architectures as a space: a search of it takes seconds and ends in an accuracy that is known."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from esformer.benchmarks.architecture import GeneArchitecture, NetworkSettings
from esformer.benchmarks.base import Benchmark, BenchmarkError, Dataset, GeneBenchmark
from esformer.benchmarks.gene_space import GeneSpace
from esformer.model.cost import Cost
from esformer.topology import Topology


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
        super().__init__(table, None if table is None else self.dataset)
        self._listed = dict(zip(benchmark.same([*self._accuracies]), self._accuracies, strict=True))

    def read(self, table: Path, dataset: str) -> dict[str, float]:
        return {entry.architecture: entry.accuracy for entry in self.benchmark.read(table, dataset)}

    @property
    def scores(self) -> Mapping[str, Callable[[GeneArchitecture], float]]:
        """Costs, the accuracies of the table, and what the benchmark counts."""
        return {**super().scores, **{name: partial(_counted, count) for name, count in self.benchmark.counts.items()}}

    def network(self, values: Sequence[str]) -> nn.Module:
        return self.benchmark.network(self.spell(values), self.dataset)

    def trained_network(self, values: Sequence[str], settings: NetworkSettings) -> nn.Module:
        self.benchmark.datasets = {self.dataset: Dataset(settings.num_classes, settings.img_size)}  # type: ignore[misc]
        return super().trained_network(values, settings)

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


def _counted(count: Callable[[str], float], architecture: GeneArchitecture) -> float:
    return count(architecture.notation)
