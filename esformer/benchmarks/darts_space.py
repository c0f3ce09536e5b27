"""The whole space of DARTS, of which hardly a network was trained: written as any other package would write a space."""

import os
from collections.abc import Sequence
from itertools import chain, combinations

from torch import nn

from esformer.benchmarks.architecture import NetworkSettings
from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.darts import NODES, OPS, Darts, Genotype, Network, parse
from esformer.benchmarks.gene_space import GeneSpace
from esformer.model.cost import Cost
from esformer.topology import Topology

CHOSEN = OPS[1:]
"""The operations of a genotype: `none` belongs to DARTS's own search, which leaves none of it."""
SOURCES = tuple(tuple(f"{a},{b}" for a, b in combinations(range(2 + node), 2)) for node in range(NODES))
"""Which two of those before it each node of a cell reads."""
MOBILE_FROM = 64
"""Pixels of the images from which on a network that is trained is that on ImageNet."""
CHANNELS, LAYERS = (36, 48), (20, 14)
"""Of the published networks: on CIFAR-10, and on ImageNet."""
SIDES = (range(8, 11), range(7, 9))
"""What the auxiliary tower can see: so many positions each way."""


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

    def trained_network(self, values: Sequence[str], settings: NetworkSettings) -> nn.Module:
        """The authors' network: that on CIFAR-10, or from 64 pixels on that on ImageNet.

        Args:
            values: a value of each gene.
            settings: what is asked for.

        Raises:
            BenchmarkError: it does not fit the images, or each other.
        """
        mobile = settings.img_size >= MOBILE_FROM
        channels, layers = settings.channels or CHANNELS[mobile], settings.layers or LAYERS[mobile]
        smallest = settings.img_size // (whole := 32 if mobile else 4)
        if channels % 2:
            raise BenchmarkError(f"channels is {channels}; it must be even, for half of them see other positions")
        if settings.img_size % whole:
            raise BenchmarkError(
                f"data.img_size is {settings.img_size}; networks of space darts halve images"
                f" {whole.bit_length() - 1} times, so it must be a multiple of {whole}"
            )
        if settings.auxiliary and smallest not in SIDES[mobile]:
            raise BenchmarkError(
                f"the auxiliary tower of space darts is for images of 32 to 40, 224 or 256 pixels, not of"
                f" {settings.img_size}; set recipe.auxiliary=0"
            )
        last = max(1, layers - 1)
        rates = [settings.drop_path * (place / last if settings.by_depth else 1) for place in range(layers)]
        plan = Darts(channels, layers).plan(self.spell(values), mobile)
        return Network(plan, settings.num_classes, mobile, rates, settings.auxiliary)

    def topology(self, values: Sequence[str]) -> Topology:
        return self._darts.topology(self.spell(values))

    def count(self, values: Sequence[str]) -> Cost:
        return self._darts.cost(self.spell(values))
