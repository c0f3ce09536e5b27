"""The contract that every benchmark keeps: architectures of known trained accuracy, and how to build their networks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from esformer.errors import ESFormerError
from esformer.genotype import Genotype
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
