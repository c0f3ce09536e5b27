"""The contract that every benchmark keeps: architectures of known trained accuracy, and how to build their networks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from esformer.choices import Group
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.proxies import Proxy, Subject, score
from esformer.topology import Topology


class BenchmarkError(ESFormerError):
    """A table that cannot be read or an architecture that is none; says what would be right."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a benchmark's networks were trained on."""

    num_classes: int
    img_size: int
    """Height and width in pixels."""


CIFAR10 = Dataset(10, 32)
CIFAR100 = Dataset(100, 32)
IMAGENET16_120 = Dataset(120, 16)


@dataclass(frozen=True, slots=True)
class Entry:
    """One architecture of a table."""

    architecture: str
    """In the benchmark's own notation; no two of a table are equal."""
    accuracy: float
    """Of the trained network on the test images, in percent."""
    params: int | None = None
    """As published, if it is."""
    macs: int | None = None
    """As published, if they are."""


def shown(proxy: Proxy, seed: int, build: Callable[[], Subject], operations: Callable[[], Topology]) -> Subject:
    """What a proxy is shown of an architecture.

    Args:
        proxy: what looks.
        seed: of whatever a proxy leaves as it was built.
        build: makes the network.
        operations: gives its operations alone, where they are enough.
    """
    if proxy.needs == "genotype":
        return operations()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class Benchmark(ABC):
    """A space of architectures with their trained accuracies."""

    name: ClassVar[str]
    """What it is called on the command line."""
    source: ClassVar[str]
    """Paper, and where the official files are."""
    shipped: ClassVar[Path | None] = None
    """The table that comes with this package, if one does."""
    datasets: ClassVar[dict[str, Dataset]] = {"cifar10": CIFAR10}
    """Those with known accuracies, by name; the first is the default."""

    def dataset(self, name: str) -> Dataset:
        """What is known of a dataset.

        Raises:
            BenchmarkError: the benchmark has no accuracies on it.
        """
        if name not in self.datasets:
            raise BenchmarkError(f"{self.name} has no dataset {name!r}; it has {', '.join(self.datasets)}")
        return self.datasets[name]

    @abstractmethod
    def read(self, table: Path, dataset: str = "cifar10") -> list[Entry]:
        """The architectures of a table in its own order.

        Raises:
            BenchmarkError: it is not there, or not a table of this benchmark.
        """

    @abstractmethod
    def network(self, architecture: str, dataset: str = "cifar10") -> nn.Module:
        """The network of an architecture as it was trained, with PyTorch's initial weights; takes B, 3, H, W.

        Raises:
            BenchmarkError: there is no such architecture.
        """

    def subject(self, architecture: str, dataset: str = "cifar10") -> nn.Module | Genotype:
        """What proxies score: the network; or a genotype, which is scored as a search scores it."""
        return self.network(architecture, dataset)

    def shown(self, proxy: Proxy, architecture: str, dataset: str, seed: int) -> Subject:
        """What a proxy is shown of an architecture: its operations alone, if that is enough, or its network."""
        return shown(proxy, seed, lambda: self.subject(architecture, dataset), lambda: self.topology(architecture))

    def score(
        self, proxy: Proxy, architecture: str, dataset: str, seed: int, shown: Subject | None = None, **settings: Any
    ) -> float:
        """What a proxy gives an architecture, whose random draws are its own; genotypes share theirs, as in a search.

        Args:
            proxy: the proxy.
            architecture: in the benchmark's notation.
            dataset: whose images have the size on which it scores.
            seed: another one draws other weights and inputs.
            shown: what `shown` gave, where it is at hand.
            **settings: other arguments of `esformer.score`, such as images.

        Raises:
            ProxyError: it cannot be scored.
        """
        subject = self.shown(proxy, architecture, dataset, seed) if shown is None else shown
        identity = None if isinstance(subject, Genotype) else architecture
        return score(proxy, subject, seed, self.dataset(dataset).img_size, identity=identity, **settings)

    @abstractmethod
    def params(self, architecture: str, dataset: str = "cifar10") -> int:
        """Parameters of that network, without building it.

        Raises:
            BenchmarkError: there is no such architecture.
        """

    @abstractmethod
    def topology(self, architecture: str) -> Topology:
        """Its optional operations.

        Raises:
            BenchmarkError: there is no such architecture.
        """


class GeneBenchmark(Benchmark):
    """A benchmark whose architectures are made of genes, each with its own choices: it can be searched."""

    genes: ClassVar[tuple[tuple[str, ...], ...]]
    """The values of each gene."""
    group: ClassVar[Group | Sequence[Group]]
    """What its genes are, of topology or of size: all of them, or one after the other."""
    counts: ClassVar[Mapping[str, Callable[[str], float]]] = {}
    """What else the notation alone says of an architecture, and a search can be guided by."""

    @abstractmethod
    def spell(self, values: Sequence[str]) -> str:
        """The architecture with these genes, in the benchmark's notation."""

    @abstractmethod
    def values(self, architecture: str) -> tuple[str, ...]:
        """The genes of an architecture; `spell` is the way back.

        Raises:
            BenchmarkError: there is no such architecture.
        """

    def same(self, architectures: Sequence[str]) -> Sequence[Hashable]:
        """What all architectures of one network have in common, where several lists of genes build the same.

        Args:
            architectures: in the benchmark's notation.
        """
        return architectures

    def is_connected(self, architecture: str) -> bool:
        """Whether the output depends on the image; where it does not, hardly a proxy is defined, and no search looks.

        Raises:
            BenchmarkError: there is no such architecture.
        """
        return True

    @abstractmethod
    def macs(self, architecture: str, dataset: str = "cifar10") -> int:
        """Multiply-accumulates of one image, by fvcore's rules, without building the network.

        Raises:
            BenchmarkError: there is no such architecture.
        """
