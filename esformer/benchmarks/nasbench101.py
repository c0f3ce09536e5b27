"""NAS-Bench-101: 423,624 cells of up to seven vertices and nine edges, each trained three times on CIFAR-10.

Ying et al., "NAS-Bench-101: Towards Reproducible Neural Architecture Search", ICML 2019. Every network is a stem and
three stacks of three equal cells; between stacks the resolution is halved and the channels are doubled.
"""

import re
from collections.abc import Hashable, Sequence
from itertools import combinations, compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from esformer.benchmarks.base import BenchmarkError, Entry, GeneBenchmark
from esformer.benchmarks.layers import conv_bn_params
from esformer.benchmarks.tables import entries, read_csv
from esformer.benchmarks.tfrecord import read_tfrecord
from esformer.topology import Block, Topology

KERNELS = {"3": 3, "1": 1}
STACKS = (128, 256, 512)
"""Channels of each stack; the stem has those of the first."""
CELLS = 3
"""In a stack."""
SLOTS = 8
"""The most operations and added branches that nine edges allow."""
MAX_EDGES = 9
VERTICES = 7
_NOTATION = re.compile("([2-7]):([01]+):([31p]*)")


class Vertex(NamedTuple):
    """A vertex of a pruned cell; they are numbered from 0, the cell's input, to the output."""

    op: str
    """3 or 1, a convolution, or p, max pooling; of the output nothing."""
    sources: list[int]
    """The vertices that it adds up (the output: concatenates), but for the input."""
    projected: bool
    """Whether the cell's input is added too: it comes through a 1x1 convolution to the right width."""


def parse(architecture: str) -> list[Vertex]:
    """The vertices of a cell, from the first after the input to the output, without those on no path between the two.

    Raises:
        BenchmarkError: it is no cell of NAS-Bench-101.
    """
    match = _NOTATION.fullmatch(architecture)
    if not match:
        raise BenchmarkError(
            f"{architecture[:80]!r} must be a number of vertices from 2 to 7, the matrix above its diagonal by rows, "
            "and an operation (3, 1, p) for each inner vertex, such as 4:110101:3p"
        )
    n, matrix, ops = int(match[1]), match[2], match[3]
    if len(matrix) != n * (n - 1) // 2 or len(ops) != n - 2:
        raise BenchmarkError(
            f"{architecture!r} has {len(matrix)} digits and {len(ops)} operations; "
            f"{n} vertices must have {n * (n - 1) // 2} and {n - 2}"
        )
    if matrix.count("1") > MAX_EDGES:
        raise BenchmarkError(f"{architecture!r} has {matrix.count('1')} edges; there must be at most {MAX_EDGES}")
    sources: list[list[int]] = [[] for _ in range(n)]
    reached = {0}
    for source, target in compress(combinations(range(n), 2), map(int, matrix)):  # row by row
        if source in reached:
            reached.add(target)
            sources[target].append(source)
    used = {n - 1}
    for target in range(n - 1, 0, -1):
        if target in used:
            used.update(sources[target])
    if 0 not in used:
        raise BenchmarkError(f"{architecture!r} has no path from the first vertex to the last; it must have one")
    number = {vertex: i for i, vertex in enumerate(sorted(used))}
    return [
        Vertex(ops[v - 1 : v] if v < n - 1 else "", [number[s] for s in sources[v] if s], 0 in sources[v])
        for v in list(number)[1:]
    ]


def vertex_widths(cell: Sequence[Vertex], out_chs: int) -> list[int]:
    """The channels of every vertex of a cell.

    Those that the output concatenates share its channels, the first ones getting one more where it does not divide;
    of the others, each has as many as the widest that it feeds.
    """
    widths = [0] * len(cell) + [out_chs]  # of vertex 0, the input, none is asked for
    shared = cell[-1].sources
    for i, vertex in enumerate(shared):
        widths[vertex] = (out_chs + len(shared) - 1 - i) // len(shared)
    for target in range(len(cell) - 1, 0, -1):
        for source in cell[target - 1].sources:
            if source not in shared:
                widths[source] = max(widths[source], widths[target])
    return widths[1:]


def cell_params(cell: Sequence[Vertex], widths: Sequence[int], in_chs: int) -> int:
    """Parameters of a `Cell`."""
    total = 0
    for (op, _, projected), width in zip(cell, widths, strict=True):
        if projected:
            total += conv_bn_params(in_chs, width)
        if op in KERNELS:
            total += conv_bn_params(width, width, KERNELS[op])
    return total


def conv_bn_relu(in_chs: int, out_chs: int, kernel: int) -> nn.Sequential:
    """Momentum as in TensorFlow's batch norm of 0.997."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, 1, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs, momentum=0.003), nn.ReLU())


class Cell(nn.Module):
    """A pruned cell: every inner vertex is an operation on the sum of what its edges bring."""

    def __init__(self, cell: Sequence[Vertex], in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.cell = cell
        self.widths = vertex_widths(cell, out_chs)
        self.projections = nn.ModuleDict()
        self.ops = nn.ModuleList()
        for number, ((op, _, projected), width) in enumerate(zip(cell, self.widths, strict=True), 1):
            if projected:
                self.projections[str(number)] = conv_bn_relu(in_chs, width, 1)
            if op:
                self.ops.append(conv_bn_relu(width, width, KERNELS[op]) if op in KERNELS else nn.MaxPool2d(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for number, (vertex, width) in enumerate(zip(self.cell, self.widths, strict=True), 1):
            parts = [values[source] for source in vertex.sources]
            if vertex.op:
                parts = [part[:, :width] for part in parts]  # one may have a channel more
            elif parts:
                parts = [torch.cat(parts, 1)]
            if vertex.projected:
                parts.append(self.projections[str(number)](x))
            value = sum(parts[1:], start=parts[0])
            values.append(self.ops[number - 1](value) if vertex.op else value)
        return values[-1]


def fingerprints(architectures: Sequence[str]) -> NDArray[np.uint64]:
    """A number each, equal for cells of one network: useless vertices and the order of the others do not count.

    As in the authors' hash of a graph, every vertex gathers again and again what those are that it reads and feeds. On
    the 423,624 cells of the official table, all of them different, it gives as many numbers.

    Args:
        architectures: cells in this notation.
    """
    found = np.zeros(len(architectures), np.uint64)
    counts = np.array([int(architecture[0]) for architecture in architectures])
    for n in np.unique(counts).tolist():
        places = np.flatnonzero(counts == n)
        text = "".join(architectures[place] for place in places.tolist()).encode()
        letters = np.frombuffer(text, np.uint8).reshape(len(places), -1)
        edges = np.zeros((len(places), n, n), bool)
        edges[:, *np.triu_indices(n, 1)] = letters[:, 2 : 2 + n * (n - 1) // 2] == ord("1")
        useful = _reached(edges) & _reached(edges[:, ::-1, ::-1].transpose(0, 2, 1))[:, ::-1]
        edges &= useful[:, :, None] & useful[:, None, :]
        known = np.full((len(places), n), [2, *[0] * (n - 2), 1], np.uint64)
        known[:, 1:-1] = letters[:, letters.shape[1] - (n - 2) :]
        for _ in range(VERTICES):
            reads = np.einsum("bst,bs->bt", edges, _mixed(known))
            feeds = np.einsum("bst,bt->bs", edges, _mixed(known + np.uint64(1)))
            known = _mixed(_mixed(_mixed(known) + reads) + feeds)
        found[places] = (_mixed(known) * useful).sum(1, dtype=np.uint64)
    return found


def _reached(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """B, N: whether there is a path from the first vertex to each, along edges B, N, N that go forwards."""
    reached = np.zeros(edges.shape[:2], bool)
    reached[:, 0] = True
    for vertex in range(1, edges.shape[1]):
        reached[:, vertex] = (edges[:, :vertex, vertex] & reached[:, :vertex]).any(1)
    return reached


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers of 64 bits whose every bit depends on all of the given ones (the end of SplitMix64)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))


def skipped_layers(architecture: str) -> float:
    """How many vertices an edge passes over, the mean of those that pass over any; 0 without such edges.

    FreeREA's third proxy, as its authors compute it here (https://github.com/NiccoloCavagnero/FreeREA,
    `nas_spaces/nasbench101.py`), but for a sum that they carry from one edge over to the next.

    Args:
        architecture: a cell.

    Raises:
        BenchmarkError: it is none.
    """
    edges = ((s, number) for number, vertex in enumerate(parse(architecture), 1) for s in _sources(vertex))
    passed = [target - source - 1 for source, target in edges if target - source > 1]
    return sum(passed) / len(passed) if passed else 0.0


class NASBench101(GeneBenchmark):
    """Cells given as `vertices:matrix:operations`; one with useless vertices is the network without them.

    The genes are those of seven vertices: whether there is an edge from each to each that comes after it, and the
    operations of the inner ones. Many lists of genes build the same network, which `same` tells.
    """

    name = "nasbench101"
    source = "arXiv:1902.09635, https://github.com/google-research/nasbench (nasbench_only108.tfrecord)"
    genes = (("0", "1"),) * (VERTICES * (VERTICES - 1) // 2) + (tuple("31p"),) * (VERTICES - 2)
    group = "topology"
    counts = {"skipped_layers": skipped_layers}

    def spell(self, values: Sequence[str]) -> str:
        inner = VERTICES - 2
        return f"{VERTICES}:{''.join(values[:-inner])}:{''.join(values[-inner:])}"

    def values(self, architecture: str) -> tuple[str, ...]:
        *inner, output = parse(architecture)
        edges = {(source, number) for number, vertex in enumerate(inner, 1) for source in _sources(vertex)}
        edges |= {(source, VERTICES - 1) for source in _sources(output)}
        matrix = ("01"[edge in edges] for edge in combinations(range(VERTICES), 2))
        return (*matrix, *(vertex.op for vertex in inner), *"3" * (VERTICES - 2 - len(inner)))

    def same(self, architectures: Sequence[str]) -> Sequence[Hashable]:
        return [*map(int, fingerprints(architectures))]

    def read(self, table: Path, dataset: str = "cifar10") -> list[Entry]:
        """The architectures of the official `.tfrecord`, or of a CSV file with n, adj, ops, test_acc and params."""
        self.dataset(dataset)
        if table.suffix == ".tfrecord":
            return entries(table, read_tfrecord(table), _checked)
        rows = read_csv(table, "n", "adj", "ops", "test_acc", "params")
        return entries(table, ((f"{n}:{adj}:{ops}", *rest) for n, adj, ops, *rest in rows), _checked)

    def network(self, architecture: str, dataset: str = "cifar10") -> nn.Module:
        cell = parse(architecture)
        layers: list[nn.Module] = [conv_bn_relu(3, STACKS[0], 3)]
        in_chs = STACKS[0]
        for out_chs in STACKS:
            if in_chs != out_chs:
                layers.append(nn.MaxPool2d(2))
            for _ in range(CELLS):
                layers.append(Cell(cell, in_chs, out_chs))
                in_chs = out_chs
        head = nn.Linear(in_chs, self.dataset(dataset).num_classes)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

    def params(self, architecture: str, dataset: str = "cifar10") -> int:
        cell = parse(architecture)
        total = conv_bn_params(3, STACKS[0], 3) + (STACKS[-1] + 1) * self.dataset(dataset).num_classes
        in_chs = STACKS[0]
        for out_chs in STACKS:
            widths = vertex_widths(cell, out_chs)
            total += cell_params(cell, widths, in_chs) + (CELLS - 1) * cell_params(cell, widths, out_chs)
            in_chs = out_chs
        return total

    def macs(self, architecture: str, dataset: str = "cifar10") -> int:
        cell, side = parse(architecture), self.dataset(dataset).img_size
        total, in_chs = conv_bn_params(3, STACKS[0], 3) * side**2, STACKS[0]  # a norm is 2 a value, by fvcore's rules
        for number, out_chs in enumerate(STACKS):
            widths = vertex_widths(cell, out_chs)
            layers = cell_params(cell, widths, in_chs) + (CELLS - 1) * cell_params(cell, widths, out_chs)
            total, in_chs = total + layers * (side >> number) ** 2, out_chs
        return total + in_chs * (side >> len(STACKS) - 1) ** 2 + in_chs * self.dataset(dataset).num_classes

    def topology(self, architecture: str) -> Topology:
        *inner, output = parse(architecture)
        ops = [vertex.op for vertex in inner]
        branches = sum(len(vertex.sources) + vertex.projected - 1 for vertex in inner)
        branches += output.projected and bool(output.sources)
        convs = {kernel: ops.count(op) for op, kernel in KERNELS.items()}
        return Topology((Block(SLOTS, convs, {3: ops.count("p")}, branches, channels=STACKS[0]),), largest_pool=3)


def _sources(vertex: Vertex) -> list[int]:
    """The vertices that it reads, the cell's input among them."""
    return [0, *vertex.sources] if vertex.projected else vertex.sources


def _checked(architecture: str) -> str:
    """Quickly, as there are 423,624: the graph is looked at where it is needed."""
    if not _NOTATION.fullmatch(architecture):
        parse(architecture)
    return architecture
