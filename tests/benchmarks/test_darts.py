import random

import pytest
import torch
from torch import nn

from esformer.benchmarks import get
from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.darts import NODES, Cell, Darts, Genotype, operation, parse
from esformer.topology import Block

BENCHMARK = get("darts")
TABLE = "darts_swap_1000.csv.gz"
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
PC_DARTS = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1), "
    "('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], normal_concat=range(2, 6), "
    "reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2), "
    "('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)], reduce_concat=range(2, 6))"
)
P_DARTS = (
    "Genotype(normal=[('skip_connect', 0), ('dil_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 0), ('dil_conv_5x5', 4)], normal_concat=range(2, 6), "
    "reduce=[('avg_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('dil_conv_5x5', 2), "
    "('max_pool_3x3', 0), ('dil_conv_3x3', 1), ('dil_conv_3x3', 1), ('dil_conv_5x5', 3)], reduce_concat=range(2, 6))"
)


@pytest.mark.parametrize(
    ("architecture", "params"), [(DARTS_V2, 3_349_342), (PC_DARTS, 3_634_678), (P_DARTS, 3_433_798)]
)
def test_published_parameters(architecture, params, counted_as_built):
    published = Darts(channels=36, layers=20)
    assert published.params(architecture) == params
    counted_as_built(published, [architecture])


def test_every_row(table, counted_as_built):
    entries = BENCHMARK.read(table(TABLE))
    assert len(entries) == 1000 and (entries[0].accuracy, entries[1].accuracy) == (85.0, 85.23999786376953)
    architectures = [entry.architecture for entry in entries]
    assert [repr(parse(architecture)) for architecture in architectures] == architectures
    counted_as_built(BENCHMARK, random.Random(0).sample(architectures, 40))
    for architecture in architectures:
        for block in BENCHMARK.topology(architecture).blocks:
            assert sum(block.convs.values()) + sum(block.pools.values()) + block.skips <= block.slots


def test_one_notation_for_what_is_the_same(tmp_path, refused):
    listed = PC_DARTS.replace("range(2, 6)", "[2, 3, 4, 5]")
    assert repr(parse(PC_DARTS)) == repr(parse(f" {listed.replace(', ', ' ,  ')}\n")) == listed
    assert parse(PC_DARTS)._replace(normal=parse(P_DARTS).normal) != parse(PC_DARTS)
    path = tmp_path / "twice.csv"
    path.write_text(f'genotype,acc\n"{PC_DARTS}",50\n"{listed}",60\n')
    refused(lambda: BENCHMARK.read(path), "twice")


def test_cell_follows_the_genotype():
    for index, stride in ((0, 1), (2, 2)):  # of 8 layers, the third is the first reduction
        cell = Cell(BENCHMARK.plan(PC_DARTS)[index]).eval()
        before, x = (torch.randn(1, chs, 8, 8) for chs in (cell.layer.before_chs, cell.layer.in_chs))
        nodes = [cell.preprocess0(before), cell.preprocess1(x)]
        edges = parse(PC_DARTS).reduce if stride == 2 else parse(PC_DARTS).normal
        for node in range(4):
            a, b = edges[2 * node : 2 * node + 2]
            nodes.append(cell.ops[2 * node](nodes[a[1]]) + cell.ops[2 * node + 1](nodes[b[1]]))
        out = cell(before, x)
        assert torch.allclose(out, torch.cat(nodes[2:], 1))
        assert out.shape == (1, 4 * cell.layer.chs, 8 // stride, 8 // stride)


def test_concat_chooses_nodes():
    fewer = DARTS_V2.replace("normal_concat=[2, 3, 4, 5]", "normal_concat=[5, 3]")
    cell = Cell(BENCHMARK.plan(fewer)[0])
    kept = []
    for op in cell.ops:
        op.register_forward_hook(lambda *call: kept.append(call[-1]))
    out = cell(*(torch.randn(2, 48, 8, 8),) * 2)
    assert torch.allclose(out, torch.cat([kept[6] + kept[7], kept[2] + kept[3]], 1))


@pytest.mark.parametrize("stride", [1, 2])
def test_operations(stride):
    x = torch.randn(1, 4, 8, 8)
    size = 8 // stride
    for op in (
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    ):
        assert operation(op, 4, stride)(x).shape == (1, 4, size, size)
    assert not operation("none", 4, stride)(x).any()
    ones = torch.ones(1, 4, 8, 8)
    assert torch.allclose(operation("avg_pool_3x3", 4, stride)(ones), ones[..., :size, :size])
    assert len(operation("sep_conv_3x3", 4, stride)) == 2 * len(operation("dil_conv_3x3", 4, stride)) == 8
    assert operation("dil_conv_5x5", 4, stride)[1].dilation == (2, 2)
    kinds = [type(module) for module in operation("dil_conv_3x3", 4, stride)]
    assert kinds == [nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]


def test_a_reduction_sees_every_position():
    reduce = operation("skip_connect", 4, 2).eval()
    for conv in (reduce.even, reduce.odd):
        nn.init.ones_(conv.weight)
    x = torch.ones(1, 4, 8, 8, requires_grad=True)
    reduce(x).sum().backward()
    seen = x.grad[0, 0] > 0
    assert torch.equal(seen, torch.tensor([[(i - j) % 2 == 0 for j in range(8)] for i in range(8)]))


def test_layers():
    for layers, reductions in ((8, [2, 5]), (20, [6, 13]), (3, [1, 2]), (1, [0])):
        plan = Darts(4, layers).plan(DARTS_V2)
        assert [i for i, layer in enumerate(plan) if layer.reduction] == reductions
        assert [layer.chs for layer in plan] == [4 * 2 ** sum(i >= r for r in reductions) for i in range(layers)]
        assert plan[0].in_chs == plan[0].before_chs == 12
    assert Darts(2, 1).network(DARTS_V2)(torch.randn(1, 3, 8, 8)).shape == (1, 10)
    for wrong in ({"channels": 0}, {"layers": 0}):
        with pytest.raises(BenchmarkError, match="at least 1"):
            Darts(**wrong)


def test_topology():
    topology = BENCHMARK.topology(PC_DARTS)
    assert topology.largest_pool == 3 and len(topology.blocks) == 8
    assert topology.blocks[0] == Block(16, {3: 8, 5: 2}, {3: 1}, 1, channels=16)
    assert topology.blocks[2] == Block(16, {3: 8, 5: 6}, {3: 1}, 0, channels=32, shrink=4)
    assert [block.channels for block in topology.blocks] == [16, 16, 32, 32, 32, 64, 64, 64]


def test_only_none(behaves):
    nothing = repr(Genotype([("none", 0), ("none", 1)] * NODES, [2, 3, 4, 5], [("none", 1), ("none", 0)] * NODES, [5]))
    network = BENCHMARK.network(nothing).eval()
    assert torch.allclose(network(torch.randn(2, 3, 32, 32)), network.classifier.bias.expand(2, 10))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("'sep_conv_3x3', 0)", "'sep_conv_7x7', 0)", "no operation 'sep_conv_7x7'"),
        ("('sep_conv_3x3', 0)", "('sep_conv_3x3', 2)", "operation 1 of a cell reads 2"),
        ("('sep_conv_3x3', 0)", "('sep_conv_3x3', True)", "reads True"),
        ("('sep_conv_3x3', 0)", "('sep_conv_3x3',)", "must look like"),
        ("normal=[('sep_conv_3x3', 0), ", "normal=[", "7 operations"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[1, 2]", "nodes 2 to 5"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[2, 2]", "nodes 2 to 5"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[]", "nodes 2 to 5"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[2.0]", "nodes 2 to 5"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[[2]]", "must look like"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=5", "must look like"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=range(2, 10**12)", "must look like"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=range(2, 1000000000000)", "nodes 2 to 5"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=exit(7)", "must look like"),
        ("normal_concat=[2, 3, 4, 5], ", "", "each once"),
        ("Genotype", "dict", "Genotype("),
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 5]", "must look like"),
    ],
)
def test_refused(old, new, words, refused):
    assert old in DARTS_V2
    refused(lambda: BENCHMARK.network(DARTS_V2.replace(old, new, 1)), words)
