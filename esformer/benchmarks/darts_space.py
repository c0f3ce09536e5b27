"""The whole space of DARTS, of which hardly a network was trained: written as any other package would write a space."""

import os
from collections.abc import Sequence
from itertools import chain, combinations

from torch import nn

from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.darts import NODES, OPS, Darts, Genotype, parse
from esformer.benchmarks.gene_space import GeneSpace
from esformer.model.cost import Cost
from esformer.topology import Topology

CHOSEN = OPS[1:]
"""The operations of a genotype: `none` belongs to DARTS's own search, which leaves none of it."""
SOURCES = tuple(tuple(f"{a},{b}" for a, b in combinations(range(2 + node), 2)) for node in range(NODES))
"""Which two of those before it each node of a cell reads."""


class DartsSpace(GeneSpace):
    """Every genotype as the published ones are: a node reads two others, and all nodes of a cell are its output.

    Args:
        table: none, as a search would meet the thousand trained genotypes of 10^18 never.
        dataset: none.
        channels: of the first cells; the published networks on CIFAR-10 have 36, and 20 layers.
        layers: how many cells.

    Raises:
        BenchmarkError: a table or a dataset is given.
    """

    name = "darts"
    genes = (CHOSEN,) * (4 * NODES) + SOURCES * 2
    group = "topology"

    def __init__(
        self,
        table: str | os.PathLike[str] | None = None,
        dataset: str | None = None,
        channels: int = 36,
        layers: int = 20,
    ) -> None:
        if table is not None or dataset is not None:
            raise BenchmarkError(
                "space darts is searched without a table: hardly any of its 10^18 genotypes is trained"
            )
        self._darts = Darts(channels, layers)
        super().__init__()

    def spell(self, values: Sequence[str]) -> str:
        ops, pairs = values[: 4 * NODES], values[4 * NODES :]
        edges = list(zip(ops, map(int, ",".join(pairs).split(",")), strict=True))
        nodes = list(range(2, 2 + NODES))
        return repr(Genotype(edges[: 2 * NODES], nodes, edges[2 * NODES :], nodes))

    def values(self, notation: str) -> tuple[str, ...]:
        genotype = parse(notation)
        edges = [*genotype.normal, *genotype.reduce]
        nodes = [sorted(pair, key=lambda edge: edge[1]) for pair in zip(edges[::2], edges[1::2], strict=True)]
        pairs = [f"{a},{b}" for (_, a), (_, b) in nodes]
        values = (*(op for op, _ in chain.from_iterable(nodes)), *pairs)
        outputs = {tuple(sorted(concat)) for concat in (genotype.normal_concat, genotype.reduce_concat)}
        known = all(value in gene for value, gene in zip(values, self.genes, strict=True))
        if outputs != {tuple(range(2, 2 + NODES))} or not known:
            raise BenchmarkError(
                f"{notation[:200]!r} is no genotype of this space: each node must read two others, without none,"
                " and all nodes must be the output"
            )
        return values

    def network(self, values: Sequence[str]) -> nn.Module:
        return self._darts.network(self.spell(values))

    def topology(self, values: Sequence[str]) -> Topology:
        return self._darts.topology(self.spell(values))

    def count(self, values: Sequence[str]) -> Cost:
        notation = self.spell(values)
        return Cost(self._darts.params(notation), self._darts.macs(notation))
