"""A table of trained architectures as a space: a search of it takes seconds and ends in an accuracy that is known."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from esformer.benchmarks.base import Benchmark, BenchmarkError, GeneBenchmark
from esformer.choices import Group
from esformer.files import write_text
from esformer.model.cost import Budget, Cost
from esformer.proxies import Proxy

TRIES = 1000
"""How often genes are drawn for an architecture that is in the table."""


@dataclass(frozen=True)
class TableArchitecture:
    """An architecture of a benchmark.

    Args:
        space: the benchmark's name.
        notation: the architecture, as the benchmark writes it.
    """

    space: str
    notation: str

    @cached_property
    def digest(self) -> str:
        """A name that is the same on every machine: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as a journal keeps it."""
        return {"space": self.space, "architecture": self.notation}

    def save(self, path: str | os.PathLike[str], comment: str = "") -> None:
        """Write it as YAML, headed by `comment`.

        Args:
            path: the file; it is replaced as a whole, or not at all.
            comment: lines for people.
        """
        head = "".join(f"# {line}\n" for line in comment.splitlines())
        write_text(Path(path), head + yaml.safe_dump(self.to_dict(), sort_keys=False, width=1000))


@dataclass(frozen=True)
class Standing:
    """How good an architecture is among all of a table that a budget allows.

    Args:
        accuracy: of the trained network, in percent.
        rank: 1 is the best; equal accuracies share the better rank.
        among: how many the budget allows.
        best: the highest accuracy among them.
        regret: what is lacking to it, in percentage points.
    """

    accuracy: float
    rank: int
    among: int
    best: float
    regret: float

    def __str__(self) -> str:
        return (
            f"{self.accuracy:.2f} %, rank {self.rank:,} of {self.among:,}; the best has {self.best:.2f} %,"
            f" so the regret is {self.regret:.2f}"
        )


class TableSpace:
    """The architectures of a table, for `esformer.search`: genes are drawn, and proxies see the networks as trained.

    A table may hold a part of the benchmark only; nothing outside it is ever drawn, nor a network
    whose output does not depend on the image (`is_connected`).

    Args:
        benchmark: whose table it is.
        table: the file.
        dataset: on which the accuracies were reached, by default the benchmark's first.

    Raises:
        BenchmarkError: the table cannot be read, or the benchmark has no genes.

    Examples:
        >>> from esformer import Schedule, benchmarks, search
        >>> space = TableSpace(benchmarks.get("nats-sss"), "sss.csv")  # doctest: +SKIP
        >>> plain = Schedule("evaluations", starts=1, start_length=500, total=500, start_proxy="naswot")
        >>> space.standing(search(space, Budget(), plain).genotype).regret  # doctest: +SKIP
    """

    def __init__(self, benchmark: Benchmark, table: str | os.PathLike[str], dataset: str | None = None) -> None:
        if not isinstance(benchmark, GeneBenchmark):
            raise BenchmarkError(f"{benchmark.name} cannot be searched: its architectures are not made of genes")
        self.benchmark, self.dataset = benchmark, dataset or next(iter(benchmark.datasets))
        self._entries = {entry.architecture: entry for entry in benchmark.read(Path(table), self.dataset)}
        self._drawn = sorted(filter(benchmark.is_connected, self._entries))
        if not self._drawn:
            raise BenchmarkError(f"{table}: in none of its networks does the output depend on the image")

    @property
    def name(self) -> str:
        return f"{self.benchmark.name}/{self.dataset}"

    @property
    def img_size(self) -> int:
        """Pixels of the images on which the networks were trained."""
        return self.benchmark.dataset(self.dataset).img_size

    @property
    def num_classes(self) -> int:
        return self.benchmark.dataset(self.dataset).num_classes

    @property
    def groups(self) -> tuple[Group, ...]:
        return (self.benchmark.group,)

    @property
    def cardinality(self) -> int:
        """How many architectures are drawn from."""
        return len(self._drawn)

    @property
    def scores(self) -> Mapping[str, Callable[[TableArchitecture], float]]:
        """What the table says: a search guided by `accuracy` shows what the algorithm does with a perfect proxy."""
        return {"accuracy": self.accuracy}

    def __contains__(self, architecture: object) -> bool:
        return (
            isinstance(architecture, TableArchitecture)
            and architecture.space == self.name
            and self._has(architecture.notation)
        )

    @cached_property
    def digest(self) -> str:
        """Of the table's architectures and accuracies, in whatever order: 16 hexadecimal digits."""
        known = sorted((entry.architecture, entry.accuracy) for entry in self._entries.values())
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]

    def sample(self, rng: random.Random) -> TableArchitecture:
        """An architecture drawn uniformly.

        Args:
            rng: the only source of chance; it moves on.
        """
        return TableArchitecture(self.name, rng.choice(self._drawn))

    def mutate(self, architecture: TableArchitecture, rng: random.Random, genes: Group = "all") -> TableArchitecture:
        """Another architecture in which some genes have another value: how many, which and what is uniform.

        Where the table lacks whatever is drawn, the architecture itself.

        Args:
            architecture: one of this space.
            rng: the only source of chance; it moves on.
            genes: all, or the group of the benchmark's genes.
        """
        values, choices = self._values(architecture, genes), self.benchmark.genes
        for _ in range(TRIES):
            mutant = list(values)
            for place in rng.sample(range(len(values)), rng.randint(1, len(values))):
                mutant[place] = rng.choice([value for value in choices[place] if value != values[place]])
            if self._has(notation := self.benchmark.spell(mutant)):
                return TableArchitecture(self.name, notation)
        return architecture

    def crossover(
        self, a: TableArchitecture, b: TableArchitecture, rng: random.Random, genes: Group = "all"
    ) -> TableArchitecture:
        """Each gene of `a` or of `b`, uniformly; `a` itself where the table lacks what is drawn.

        Args:
            a: a parent.
            b: the other parent.
            rng: the only source of chance; it moves on.
            genes: all, or the group of the benchmark's genes.
        """
        both = zip(self._values(a, genes), self._values(b, genes), strict=True)
        notation = self.benchmark.spell([rng.choice(pair) for pair in both])
        return TableArchitecture(self.name, notation) if self._has(notation) else a

    def cheapest(self, weigh: Callable[[TableArchitecture], float]) -> TableArchitecture:
        """The architecture of least cost.

        Args:
            weigh: what one costs.
        """
        return min((TableArchitecture(self.name, notation) for notation in self._drawn), key=weigh)

    def cost(self, architecture: TableArchitecture) -> Cost:
        """Parameters and MACs of its network.

        Args:
            architecture: one of this space.
        """
        notation = architecture.notation
        return Cost(self.benchmark.params(notation, self.dataset), self.benchmark.macs(notation, self.dataset))

    def accuracy(self, architecture: TableArchitecture) -> float:
        """The accuracy of the trained network, in percent.

        Args:
            architecture: one of this space.
        """
        return self._entries[architecture.notation].accuracy

    def score(
        self,
        proxy: Proxy,
        architecture: TableArchitecture,
        seed: int,
        draws: int | None = None,
        images: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> float:
        """What a proxy gives its network: the same number that `pipelines.correlate` finds.

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
        return self.benchmark.score(
            proxy, architecture.notation, self.dataset, seed, draws=draws, images=images, labels=labels
        )

    def standing(self, architecture: TableArchitecture, budget: Budget = Budget()) -> Standing:  # noqa: B008 (frozen)
        """How good an architecture is among all that a budget allows.

        Args:
            architecture: one of this space.
            budget: what may be compared.
        """
        accuracy, rivals = self.accuracy(architecture), self._accuracies(budget)
        best = max(rivals)
        rank = 1 + sum(rival > accuracy for rival in rivals)
        return Standing(accuracy, rank, len(rivals), best, round(best - accuracy, 6))

    def _has(self, notation: str) -> bool:
        """Whether an architecture may be drawn."""
        return notation in self._entries and self.benchmark.is_connected(notation)

    def _accuracies(self, budget: Budget) -> list[float]:
        """Those of everything that a budget allows."""
        every = (TableArchitecture(self.name, notation) for notation in self._entries)
        free = budget.params is None and budget.macs is None
        return [self.accuracy(one) for one in every if free or budget.allows(self.cost(one))]

    def _values(self, architecture: TableArchitecture, genes: Group) -> tuple[str, ...]:
        """The genes of an architecture of this space, if they are of the group."""
        if genes not in ("all", *self.groups):
            raise BenchmarkError(f"space {self.name} has no {genes} genes; it has {' and '.join(self.groups)} genes")
        if architecture not in self:
            raise BenchmarkError(f"{str(architecture)[:200]} is no architecture of space {self.name}")
        return self.benchmark.values(architecture.notation)
