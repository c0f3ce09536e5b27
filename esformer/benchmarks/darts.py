"""The space of DARTS: a normal and a reduction cell, each of four nodes that add two operations.

Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019. The accuracies are those of 1,000 random genotypes
that Peng et al. trained for 200 epochs on CIFAR-10 ("SWAP-NAS", ICLR 2024); they do not say how wide and how deep.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from esformer.benchmarks.base import Benchmark, BenchmarkError, Entry
from esformer.benchmarks.layers import Zero, conv_bn_params, relu_conv_bn
from esformer.benchmarks.tables import entries, read_csv
from esformer.model.cost import Cost
from esformer.topology import Block, Topology

OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
NODES = 4
STEM = 3
"""The stem's width, in multiples of the first cells'."""


class Genotype(NamedTuple):
    """Two operations a node, each with the node that it reads: 0 and 1 are the two cells before; and the output's."""

    normal: list[tuple[str, int]]
    normal_concat: list[int]
    reduce: list[tuple[str, int]]
    reduce_concat: list[int]


@lru_cache(maxsize=1024)  # a search asks for the cost, the score and the genes of the same one
def parse(architecture: str) -> Genotype:
    """The genotype that a text says, `repr` of which is the same for all texts that mean the same.

    Raises:
        BenchmarkError: it is none of this space.
    """
    try:
        call = ast.parse(architecture.strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"):
            raise ValueError("it does not begin with Genotype(")
        if call.args or [keyword.arg for keyword in call.keywords] != list(Genotype._fields):
            raise ValueError(f"it must have {', '.join(Genotype._fields)}, each once")
        genotype = Genotype(*(_value(keyword.value) for keyword in call.keywords))
        normal, reduce = _edges(genotype.normal), _edges(genotype.reduce)
        return Genotype(normal, _concat(genotype.normal_concat), reduce, _concat(genotype.reduce_concat))
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise BenchmarkError(
            f"{architecture[:80]!r} is no genotype of DARTS: {reason}; it must look like "
            "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, 3, 4, 5], reduce=[...], reduce_concat=[...])"
        ) from error


def _value(node: ast.expr) -> list[Any]:
    """A literal, or range(a, b), which published genotypes have; nothing of it is run."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        return list(range(*map(ast.literal_eval, node.args))[: NODES + 1])
    return list(ast.literal_eval(node))


def _edges(edges: list[Any]) -> list[tuple[str, int]]:
    if len(edges) != 2 * NODES:
        raise ValueError(f"a cell has {len(edges)} operations where it must have {2 * NODES}")
    for place, (op, source) in enumerate(edges):
        if op not in OPS:
            raise ValueError(f"there is no operation {op!r}, but {', '.join(OPS)}")
        if type(source) is not int or not 0 <= source < 2 + place // 2:
            raise ValueError(
                f"operation {place + 1} of a cell reads {source!r}; it must be one from 0 to {1 + place // 2}"
            )
    return [tuple(edge) for edge in edges]


def _concat(nodes: list[Any]) -> list[int]:
    inner = range(2, 2 + NODES)
    if not nodes or len(set(nodes)) < len(nodes) or any(type(node) is not int or node not in inner for node in nodes):
        raise ValueError(f"a cell's output is {nodes}; it must be some of the nodes 2 to {1 + NODES}")
    return nodes


def separable(chs: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    """ReLU, depthwise and pointwise convolution, norm."""
    padding = kernel // 2 * dilation
    return [
        nn.ReLU(),
        nn.Conv2d(chs, chs, kernel, stride, padding, dilation, groups=chs, bias=False),
        nn.Conv2d(chs, chs, 1, bias=False),
        nn.BatchNorm2d(chs),
    ]


class FactorizedReduce(nn.Module):
    """Halves the resolution: half of the channels see the even positions, the others the odd ones."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.even = nn.Conv2d(in_chs, out_chs // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(in_chs, out_chs // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        return self.bn(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))


def operation(op: str, chs: int, stride: int) -> nn.Module:
    """One operation of a cell."""
    if op == "none":
        return Zero(stride)
    if op == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if op == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if op == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(chs, chs)
    kernel = int(op[-1])
    if op.startswith("dil"):
        return nn.Sequential(*separable(chs, kernel, stride, dilation=2))
    return nn.Sequential(*separable(chs, kernel, stride), *separable(chs, kernel, 1))


def operation_params(op: str, chs: int, stride: int) -> int:
    """Parameters of `operation`."""
    if op == "skip_connect":
        return 0 if stride == 1 else conv_bn_params(chs, chs)
    if "conv" not in op:
        return 0
    once = chs * int(op[-1]) ** 2 + conv_bn_params(chs, chs)
    return once if op.startswith("dil") else 2 * once


class Layer(NamedTuple):
    """What one cell of a network is made from."""

    edges: list[tuple[str, int]]
    concat: list[int]
    before_chs: int
    """Of the last cell but one, whose output it also reads."""
    in_chs: int
    chs: int
    reduction: bool
    after_reduction: bool

    @property
    def out_chs(self) -> int:
        """Of its output."""
        return len(self.concat) * self.chs

    @property
    def ops(self) -> Iterator[tuple[str, int, int]]:
        """Name, channels and stride of each operation: 2 in a reduction cell for those that read its inputs."""
        return ((op, self.chs, 2 if self.reduction and source < 2 else 1) for op, source in self.edges)


class Cell(nn.Module):
    """Reads the last two cells and concatenates its nodes. Every operation but the identity may be a path to drop."""

    def __init__(self, layer: Layer, drop_path: float = 0.0) -> None:
        super().__init__()
        self.layer = layer
        before = FactorizedReduce if layer.after_reduction else relu_conv_bn
        self.preprocess0 = before(layer.before_chs, layer.chs)
        self.preprocess1 = relu_conv_bn(layer.in_chs, layer.chs)
        self.ops = nn.ModuleList(operation(*op) for op in layer.ops)
        kept = (isinstance(op, nn.Identity) for op in self.ops)
        paths = (nn.Identity() if keep else DropPath(drop_path) for keep in kept)
        self.paths = nn.ModuleList(paths) if drop_path else None  # some proxies count modules

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        nodes = [self.preprocess0(before), self.preprocess1(x)]
        for first in range(0, 2 * NODES, 2):
            left, right = (self._operate(place, nodes) for place in (first, first + 1))
            nodes.append(left + right)
        return torch.cat([nodes[node] for node in self.layer.concat], 1)

    def _operate(self, place: int, nodes: list[Tensor]) -> Tensor:
        x = self.ops[place](nodes[self.layer.edges[place][1]])
        return x if self.paths is None else self.paths[place](x)


class Network(nn.Module):
    """The network on CIFAR-10, or that on ImageNet.

    Args:
        layers: its cells.
        num_classes: of the classifier.
        mobile: whether it is that on ImageNet (the mobile setting): the stem brings images to an eighth of their size.
        drop_path: how often each cell drops a path; nothing drops none.
        auxiliary: whether there is the authors' auxiliary tower, behind the second reduction; in training mode the
            network then gives its logits and those of the tower.
    """

    def __init__(
        self,
        layers: list[Layer],
        num_classes: int,
        mobile: bool = False,
        drop_path: Sequence[float] = (),
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        chs, self.mobile = layers[0].in_chs, mobile
        if mobile:
            self.stem0 = nn.Sequential(*_halving(3, chs // 2), nn.ReLU(), *_halving(chs // 2, chs))
            self.stem1 = nn.Sequential(nn.ReLU(), *_halving(chs, chs))
        else:
            self.stem = nn.Sequential(nn.Conv2d(3, chs, 3, 1, 1, bias=False), nn.BatchNorm2d(chs))
        self.cells = nn.ModuleList(map(Cell, layers, drop_path or [0.0] * len(layers)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(layers[-1].out_chs, num_classes)
        self.place = 2 * len(layers) // 3
        seen = layers[self.place].out_chs
        self.auxiliary = auxiliary_tower(seen, num_classes, mobile) if auxiliary else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        before, x = self._stems(x)
        logits = None
        for place, cell in enumerate(self.cells):
            before, x = x, cell(before, x)
            if self.auxiliary is not None and self.training and place == self.place:
                logits = self.auxiliary(x)
        own = self.classifier(self.pool(x).flatten(1))
        return own if logits is None else (own, logits)

    def _stems(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.mobile:
            x = self.stem(x)
            return x, x
        before = self.stem0(x)
        return before, self.stem1(before)


def _halving(in_chs: int, out_chs: int) -> list[nn.Module]:
    return [nn.Conv2d(in_chs, out_chs, 3, 2, 1, bias=False), nn.BatchNorm2d(out_chs)]


def auxiliary_tower(chs: int, num_classes: int, mobile: bool) -> nn.Module:
    """The authors' AuxiliaryHeadCIFAR, or AuxiliaryHeadImageNet, which lacks the second norm.

    Args:
        chs: channels of what it sees: 8 x 8 positions on CIFAR-10, 7 x 7 on ImageNet.
        num_classes: of its classifier.
        mobile: whether it is that on ImageNet.
    """
    return nn.Sequential(
        nn.ReLU(),
        nn.AvgPool2d(5, 2 if mobile else 3, count_include_pad=False),  # 2 x 2
        nn.Conv2d(chs, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 768, 2, bias=False),
        *([] if mobile else [nn.BatchNorm2d(768)]),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, num_classes),
    )


class Darts(Benchmark):
    """Genotypes, each a network of `layers` cells, of which the first have `channels` channels.

    The published networks have 36 channels and 20 layers; the table's are smaller, and 16 and 8 are those of the
    search in the paper, as SWAP's authors do not say.
    """

    name = "darts"
    source = "arXiv:1806.09055, https://github.com/quark0/darts; accuracies: https://github.com/pym1024/SWAP"

    def __init__(self, channels: int = 16, layers: int = 8) -> None:
        if channels < 1 or layers < 1:
            raise BenchmarkError(f"channels and layers are {channels} and {layers}; both must be at least 1")
        self.channels = channels
        self.layers = layers

    def read(self, table: Path, dataset: str = "cifar10") -> list[Entry]:
        """The architectures of a CSV file with columns genotype, acc."""
        self.dataset(dataset)
        rows = ((text, accuracy, None) for text, accuracy in read_csv(table, "genotype", "acc"))
        return entries(table, rows, lambda text: repr(parse(text)))

    def plan(self, architecture: str, mobile: bool = False) -> list[Layer]:
        """The cells of a network; on ImageNet (`mobile`) they are behind another stem, which is a reduction, too."""
        genotype = parse(architecture)
        chs = self.channels
        before_chs = in_chs = chs if mobile else STEM * chs
        plan: list[Layer] = []
        for index in range(self.layers):
            reduction = index in (self.layers // 3, 2 * self.layers // 3)
            edges, concat = genotype[2:] if reduction else genotype[:2]
            chs *= 2 if reduction else 1
            after_reduction = plan[-1].reduction if plan else mobile
            plan.append(Layer(edges, concat, before_chs, in_chs, chs, reduction, after_reduction))
            before_chs, in_chs = in_chs, plan[-1].out_chs
        return plan

    def network(self, architecture: str, dataset: str = "cifar10") -> nn.Module:
        return Network(self.plan(architecture), self.dataset(dataset).num_classes)

    def cost(self, architecture: str, dataset: str = "cifar10") -> Cost:
        """Parameters, and multiply-accumulates by fvcore's rules: a norm is 2 a value, as it has 2 parameters each."""
        plan, images = self.plan(architecture), self.dataset(dataset)
        side = images.img_size
        params = conv_bn_params(3, plan[0].in_chs, 3)
        macs = params * side**2
        for layer, operations in zip(plan, _of_layers(plan, _operations_params), strict=True):
            before = conv_bn_params(layer.before_chs, layer.chs) + conv_bn_params(layer.in_chs, layer.chs)
            macs += before * side**2
            side = -(-side // 2) if layer.reduction else side
            macs += operations * side**2
            params += before + operations
        out = plan[-1].out_chs
        return Cost(params + (out + 1) * images.num_classes, macs + out * side**2 + out * images.num_classes)

    def params(self, architecture: str, dataset: str = "cifar10") -> int:
        return self.cost(architecture, dataset).params

    def topology(self, architecture: str) -> Topology:
        return Topology(tuple(_of_layers(self.plan(architecture), _block)), largest_pool=3)


def _of_layers(plan: Sequence[Layer], measure: Callable[[Layer], Any]) -> list[Any]:
    """What is measured of the operations of each layer: once for all that are of one kind and width."""
    distinct = {(layer.reduction, layer.chs): layer for layer in plan}
    measured = {kind: measure(layer) for kind, layer in distinct.items()}
    return [measured[layer.reduction, layer.chs] for layer in plan]


def _operations_params(layer: Layer) -> int:
    return sum(operation_params(*op) for op in layer.ops)


def _block(layer: Layer) -> Block:
    """A separable convolution is applied twice and counts as two: SED then agrees with its paper (docs/results)."""
    names = [op for op, _ in layer.edges]
    convs = {k: 2 * names.count(f"sep_conv_{k}x{k}") + names.count(f"dil_conv_{k}x{k}") for k in (3, 5)}
    pools = {3: sum("pool" in op for op in names)}
    slots = 2 * len(names)
    return Block(slots, convs, pools, names.count("skip_connect"), layer.chs, 4 if layer.reduction else 1)
