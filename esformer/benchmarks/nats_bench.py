"""NATS-Bench: all 15,625 topologies of a cell (NAS-Bench-201), and all 32,768 widths of one of them.

Dong et al., "NATS-Bench: Benchmarking NAS Algorithms for Architecture Topology and Size", TPAMI 2021. A network is a
stem, three stages of equal cells with a residual block of stride 2 before the second and the third, and a classifier.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from esformer.benchmarks.base import CIFAR10, CIFAR100, IMAGENET16_120, BenchmarkError, Dataset, Entry, GeneBenchmark
from esformer.benchmarks.layers import Zero, conv_bn_params, relu_conv_bn
from esformer.benchmarks.tables import Row, entries, read_csv
from esformer.topology import Block, Count, Topology

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
WIDTHS = ("8", "16", "24", "32", "40", "48", "56", "64")
KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
_OP = f"({'|'.join(OPS)})"
_PATTERN = rf"\|{_OP}~0\|\+\|{_OP}~0\|{_OP}~1\|\+\|{_OP}~0\|{_OP}~1\|{_OP}~2\|"
_CELL = re.compile(_PATTERN)
_CELLS = re.compile(f"(?:{_PATTERN.replace('(', '(?:')}\n)*")
SOURCES = (0, 0, 1, 0, 1, 2)
"""The node that each of a cell's six operations reads, in the order of the notation."""
NODES = (1, 2, 2, 3, 3, 3)
"""The node to which each of them adds."""
SIZE_CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
"""The cell of every network of the size space."""


def cell_ops(architecture: str) -> tuple[str, ...]:
    """The six operations of a cell, in the order of the notation.

    Raises:
        BenchmarkError: it is none.
    """
    if not (match := _CELL.fullmatch(architecture)):
        raise BenchmarkError(
            f"{architecture[:200]!r} is no cell of NATS-Bench; it must look like {SIZE_CELL}, of {', '.join(OPS)}"
        )
    return match.groups()


def reductions(widths: Sequence[int]) -> tuple[int, int]:
    """Which of the cells are residual blocks of stride 2 instead: those between three equally long stages."""
    stage = len(widths) // 3
    return stage, 2 * stage + 1


def edge(op: str, in_chs: int, out_chs: int) -> nn.Module:
    """One operation of a cell."""
    if op in KERNELS:
        return relu_conv_bn(in_chs, out_chs, KERNELS[op])
    if op == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    if op == "none":
        return Zero()
    if in_chs == out_chs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs))


def edge_params(op: str, in_chs: int, out_chs: int) -> int:
    """Parameters of `edge`."""
    if op in KERNELS or (op == "skip_connect" and in_chs != out_chs):
        return conv_bn_params(in_chs, out_chs, KERNELS.get(op, 1))
    return 0


class Cell(nn.Module):
    """Four nodes, of which each is the sum of operations on all that come before it."""

    def __init__(self, ops: Sequence[str], in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            edge(op, out_chs if source else in_chs, out_chs) for op, source in zip(ops, SOURCES, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f = self.edges
        node1 = a(x)
        node2 = b(x) + c(node1)
        return d(x) + e(node1) + f(node2)


class ResidualBlock(nn.Module):
    """Halves the resolution: two 3x3 convolutions beside an average pooling and a projection."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.conv_a = relu_conv_bn(in_chs, out_chs, 3, 2)
        self.conv_b = relu_conv_bn(out_chs, out_chs, 3)
        self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_chs, out_chs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(x) + self.conv_b(self.conv_a(x))


def build(ops: Sequence[str], widths: Sequence[int], num_classes: int) -> nn.Module:
    """The network whose cells have these operations and these widths."""
    body: list[nn.Module] = []
    for index, (in_chs, out_chs) in enumerate(pairwise((widths[0], *widths))):
        body.append(ResidualBlock(in_chs, out_chs) if index in reductions(widths) else Cell(ops, in_chs, out_chs))
    return nn.Sequential(
        nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        *body,
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], num_classes),
    )


def stage_params(ops: Sequence[str], widths: Sequence[int]) -> tuple[int, int, int]:
    """Parameters of stem, cells, residual blocks and last norm, by the stage whose resolution they work at."""
    stages = [conv_bn_params(3, widths[0], 3), 0, 2 * widths[-1]]
    stage = 0
    for index, (in_chs, out_chs) in enumerate(pairwise((widths[0], *widths))):
        if index in reductions(widths):
            stage += 1
            convs = conv_bn_params(in_chs, out_chs, 3) + conv_bn_params(out_chs, out_chs, 3)
            stages[stage] += convs + in_chs * out_chs
        else:
            edges = zip(ops, SOURCES, strict=True)
            stages[stage] += sum(edge_params(op, out_chs if source else in_chs, out_chs) for op, source in edges)
    return stages[0], stages[1], stages[2]


def count(ops: Sequence[str], widths: Sequence[int], num_classes: int) -> int:
    """Parameters of the network that `build` builds."""
    return sum(stage_params(ops, widths)) + (widths[-1] + 1) * num_classes


def count_macs(ops: Sequence[str], widths: Sequence[int], dataset: Dataset) -> int:
    """Multiply-accumulates of one image, by fvcore's rules: a norm is 2 a value, as it has 2 parameters a channel."""
    positions = [(dataset.img_size >> stage) ** 2 for stage in range(3)]
    body = sum(params * full for params, full in zip(stage_params(ops, widths), positions, strict=True))
    return body + widths[-1] * positions[-1] + widths[-1] * dataset.num_classes  # pooling and classifier


class _NATSBench(GeneBenchmark):
    """What both spaces share: the datasets, the official files, and the kind of network."""

    datasets = {"cifar10": CIFAR10, "cifar100": CIFAR100, "imagenet16-120": IMAGENET16_120}
    space: ClassVar[str]
    """What the package `nats_bench` calls it."""
    epochs: ClassVar[int]
    """Of the longest training."""

    @abstractmethod
    def plan(self, architecture: str) -> tuple[Sequence[str], Sequence[int]]:
        """The operations of the cells, and the width of each cell and residual block."""

    @abstractmethod
    def _read_csv(self, table: Path, dataset: str) -> Iterator[Row]:
        """The rows of a CSV file."""

    def read(self, table: Path, dataset: str = "cifar10") -> list[Entry]:
        """The architectures of a CSV file, or of an official file or folder: those are pickles, which can run code."""
        self.dataset(dataset)
        official = table.is_dir() or table.name.endswith(".pickle.pbz2")
        rows = self._read_official(table, dataset) if official else self._read_csv(table, dataset)
        return entries(table, rows, self._checked)

    def _checked(self, architecture: str) -> str:
        self.plan(architecture)
        return architecture

    def _read_official(self, table: Path, dataset: str) -> Iterator[Row]:
        try:
            import nats_bench
        except ImportError as error:
            raise BenchmarkError(f'{table}: to read it, pip install -e ".[benchmarks]"') from error
        key = dataset.replace("imagenet", "ImageNet")
        try:
            api = nats_bench.create(str(table), self.space, fast_mode=table.is_dir(), verbose=False)
            if table.is_dir():  # one file for each architecture
                indexes = sorted(int(path.name.split(".")[0]) for path in table.glob("[0-9]*.pickle.pbz2"))
            else:
                indexes = sorted(api.evaluated_indexes)
            for index in indexes:
                info = api.get_more_info(index, key, hp=str(self.epochs), is_random=False)
                yield api.arch(index), info["test-accuracy"], None
                if table.is_dir():
                    api.arch2infos_dict.clear()  # all that it has read: gigabytes by the end
        except Exception as error:  # a pickle that is not what it should be can raise anything
            raise BenchmarkError(f"{table}: is not an official file of NATS-Bench's {self.space}: {error!r}") from error

    def network(self, architecture: str, dataset: str = "cifar10") -> nn.Module:
        return build(*self.plan(architecture), self.dataset(dataset).num_classes)

    def params(self, architecture: str, dataset: str = "cifar10") -> int:
        return count(*self.plan(architecture), self.dataset(dataset).num_classes)

    def macs(self, architecture: str, dataset: str = "cifar10") -> int:
        return count_macs(*self.plan(architecture), self.dataset(dataset))


def skipped_layers(architecture: str) -> float:
    """How many nodes a skip connection passes over, in the mean; 0 without any.

    FreeREA's third proxy (Cavagnero et al., "FreeREA: Training-Free Evolution-based Architecture Search", WACV 2023).

    Args:
        architecture: a cell of the topology space.

    Raises:
        BenchmarkError: it is none.
    """
    edges = zip(cell_ops(architecture), SOURCES, NODES, strict=True)
    passed = [node - source - 1 for op, source, node in edges if op == "skip_connect"]
    return sum(passed) / len(passed) if passed else 0.0


class TopologySpace(_NATSBench):
    """Which of five operations stands on each of a cell's six edges."""

    name = "nats-tss"
    source = "arXiv:2009.00437, https://github.com/D-X-Y/NATS-Bench (NATS-tss-v1_0-3ffb9)"
    space = "tss"
    epochs = 200
    genes = (OPS,) * 6
    group = "topology"
    counts = {"skipped_layers": skipped_layers}

    def spell(self, values: Sequence[str]) -> str:
        a, b, c, d, e, f = (f"{op}~{source}" for op, source in zip(values, SOURCES, strict=True))
        return f"|{a}|+|{b}|{c}|+|{d}|{e}|{f}|"

    def values(self, architecture: str) -> tuple[str, ...]:
        return cell_ops(architecture)

    def plan(self, architecture: str) -> tuple[Sequence[str], Sequence[int]]:
        return cell_ops(architecture), [16] * 5 + [32] * 6 + [64] * 6

    def is_connected(self, architecture: str) -> bool:
        reached = {0}
        for op, source, node in zip(cell_ops(architecture), SOURCES, NODES, strict=True):
            reached |= {node} if op != "none" and source in reached else set()
        return 3 in reached

    def _read_csv(self, table: Path, dataset: str) -> Iterator[Row]:
        prefix = {"cifar10": "c10", "cifar100": "c100", "imagenet16-120": "im"}[dataset]
        return read_csv(table, "arch", f"{prefix}_test200", f"{prefix}_params")

    def topology(self, architecture: str) -> Topology:
        cell_ops(architecture)
        count = architecture.count
        return _topology(*map(count, ("nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "skip_connect")))


def _topology(convs3: Count, convs1: Count, pools: Count, skips: Count) -> Topology:
    return Topology((Block(6, {3: convs3, 1: convs1}, {3: pools}, skips, channels=16),), largest_pool=3)


def topologies(architectures: Sequence[str]) -> Topology:
    """The topologies of many cells of the topology space at once: every count is an array.

    Raises:
        BenchmarkError: one of them is none.
    """
    lines = "".join(f"{architecture}\n" for architecture in architectures)
    if not _CELLS.fullmatch(lines) or lines.count("\n") != len(architectures):
        for architecture in architectures:
            cell_ops(architecture)
    text = np.frombuffer(lines.encode(), np.uint8)
    ends = np.flatnonzero(text == ord("~")).reshape(-1, 6)  # two letters in front of it tell the operations apart
    last, fifth = text[ends - 1], text[ends - 5]
    pools = np.count_nonzero(fifth == ord("l"), axis=1)
    convs1, threes, skips = (np.count_nonzero(last == ord(letter), axis=1) for letter in "13t")
    return _topology(threes - pools, convs1, pools, skips)


class SizeSpace(_NATSBench):
    """Five widths from 8 to 64: of the stem and the first cell, then of residual block, cell, residual block, cell."""

    name = "nats-sss"
    source = "arXiv:2009.00437, https://github.com/D-X-Y/NATS-Bench (NATS-sss-v1_0-50262)"
    space = "sss"
    epochs = 90
    genes = (WIDTHS,) * 5
    group = "size"

    def spell(self, values: Sequence[str]) -> str:
        return ":".join(values)

    def values(self, architecture: str) -> tuple[str, ...]:
        self.plan(architecture)
        return tuple(architecture.split(":"))

    def plan(self, architecture: str) -> tuple[Sequence[str], Sequence[int]]:
        if len(chosen := architecture.split(":")) != 5 or not {*chosen} <= {*WIDTHS}:
            raise BenchmarkError(
                f"{architecture[:80]!r} must be 5 widths, multiples of 8 from 8 to 64, such as 64:32:8:16:64"
            )
        return cell_ops(SIZE_CELL), [int(width) for width in chosen]

    def _read_csv(self, table: Path, dataset: str) -> Iterator[Row]:
        return ((arch, accuracy, None) for arch, accuracy in read_csv(table, "arch", f"{dataset}_test"))

    def topology(self, architecture: str) -> Topology:
        _, widths = self.plan(architecture)
        convs = {3: SIZE_CELL.count("nor_conv_3x3")}
        return Topology(
            tuple(
                Block(5, convs, channels=width, shrink=4 if index in reductions(widths) else 1)
                for index, width in enumerate(widths)
            )
        )
