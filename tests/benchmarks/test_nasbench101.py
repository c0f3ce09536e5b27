import base64
import json
import random
import struct

import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from torch import nn

from esformer.benchmarks import get
from esformer.benchmarks.base import BenchmarkError, Entry
from esformer.benchmarks.nasbench101 import Cell, Vertex, fingerprints, parse, vertex_widths
from esformer.benchmarks.space import TableSpace
from esformer.proxies.macs import count_macs
from esformer.topology import Block

BENCHMARK = get("nasbench101")
TABLE = "nasbench101_full.csv.gz"


@pytest.mark.nightly
def test_every_row(table, counted_as_built):
    entries = BENCHMARK.read(table(TABLE))
    assert len(entries) == 423_624
    assert entries[0] == Entry("7:100110100001001010101:3p331", 92.0606, 8_555_530)
    wrong = [entry for entry in entries if BENCHMARK.params(entry.architecture) != entry.params]
    assert not wrong, wrong[:3]
    sample = random.Random(0).sample(entries, 60)
    counted_as_built(BENCHMARK, [entry.architecture for entry in sample])
    for entry in sample:
        (block,) = BENCHMARK.topology(entry.architecture).blocks
        assert sum(block.convs.values()) + sum(block.pools.values()) + block.skips <= block.slots
    numbers = BENCHMARK.same([entry.architecture for entry in entries])
    assert len({*numbers}) == len(numbers)  # no two cells of the official table are the same network


def reordered(architecture, rng):
    """The same cell with its inner vertices in another order that edges allow, and a useless vertex where one fits."""
    *inner, output = parse(architecture)
    edges = [(s, t) for t, v in enumerate([*inner, output], 1) for s in [*v.sources, *[0] * v.projected]]
    ops = {number: vertex.op for number, vertex in enumerate(inner, 1)}
    if len(inner) < 5 and len(edges) < 9:
        ops["useless"] = rng.choice("31p")
        edges.append((0, "useless"))
    order, left = [0], {*ops}
    while left:
        ready = [v for v in left if all(s in order for s, t in edges if t == v)]
        order.append(rng.choice(sorted(ready, key=str)))
        left.remove(order[-1])
    order.append(len(inner) + 1)
    n, found = len(order), {(order.index(s), order.index(t)) for s, t in edges}
    matrix = "".join(str(int((a, b) in found)) for a in range(n) for b in range(a + 1, n))
    return f"{n}:{matrix}:{''.join(ops[v] for v in order[1:-1])}"


def test_a_cell_in_another_order_is_the_same_and_another_cell_is_not():
    rng = random.Random(0)
    several = []
    while len(several) < 200:
        values = [rng.choice(gene) for gene in BENCHMARK.genes]
        try:
            parse(BENCHMARK.spell(values))
            several.append(BENCHMARK.spell(values))
        except BenchmarkError:
            pass
    others = [reordered(one, rng) for one in several]
    assert sum(one != other for one, other in zip(several, others, strict=True)) > 100
    assert fingerprints(several).tolist() == fingerprints(others).tolist()
    for architecture, op in (("4:110101:31", "p"), ("3:111:3", "1"), ("7:100110100001001010101:3p331", "3")):
        changed = architecture[:-1] + op
        assert fingerprints([architecture]) != fingerprints([changed])
    assert fingerprints(["4:100101:31"]) != fingerprints(["4:100101:13"])  # one after the other
    alike = ["6:111010001110101:3331", "6:111011001010101:3331"]  # vertices that read the same, but feed others
    assert len({*fingerprints(alike).tolist()}) == 2


def test_its_table_is_searched_whatever_notation_the_table_has(tmp_path):
    cells = ["2:1:", "3:101:3", "3:101:1", "3:101:p", "3:111:3", "4:100101:33", "4:110011:13"]
    rows = [f"{i},{i},{cell.replace(':', ',')},1,{90 + i}" for i, cell in enumerate(cells)]
    (tmp_path / "t.csv").write_text("\n".join(["hash10,_,n,adj,ops,params,test_acc", *rows, ""]))
    space, rng = TableSpace(BENCHMARK, tmp_path / "t.csv"), random.Random(0)
    for cell in cells:
        assert space.spell(space.values(cell)) == cell
    assert space.spell(space.values("4:110011:31")) == "4:110011:13"  # two branches, in the table's order
    start = space.sample(rng)
    reached = {start.notation}
    for _ in range(40):
        start = space.mutate(start, rng)
        reached.add(start.notation)
    assert reached <= {*cells} and len(reached) > 4
    for cell in cells:
        network = BENCHMARK.network(cell).eval()
        assert BENCHMARK.macs(cell) == count_macs(network, torch.zeros(1, 3, 32, 32)), cell


def test_parameters_by_hand():
    stem_and_head = 27 * 128 + 256 + 512 * 10 + 10
    projections = sum(
        a * b + 2 * b for a, b in zip((128, 128, 128, 128, 256, 256, 256, 512, 512), [128] * 3 + [256] * 3 + [512] * 3)
    )
    assert BENCHMARK.params("2:1:") == stem_and_head + projections == 882_570  # the table's one cell without operation
    convs = sum(3 * (9 * c * c + 2 * c) for c in (128, 256, 512))
    assert BENCHMARK.params("3:101:3") == stem_and_head + projections + convs
    assert BENCHMARK.params("3:101:p") == stem_and_head + projections
    assert BENCHMARK.params("3:111:p") == stem_and_head + 2 * projections


def notation(edges, ops):
    """Of a cell with these edges, such as 01 for the one from the input to the first inner vertex."""
    n = len(ops) + 2
    return f"{n}:{''.join(str(int(f'{a}{b}' in edges.split())) for a in range(n) for b in range(a + 1, n))}:{ops}"


@pytest.mark.parametrize(
    ("architecture", "out", "widths"),
    [
        (notation("01 12 23", "31"), 100, [100, 100, 100]),
        (notation("01 02 03 14 24 34", "333"), 128, [43, 43, 42, 128]),  # the first take what is left over
        (notation("01 12 13 24 34", "333"), 128, [64, 64, 64, 128]),
        (notation("01 12 14 03 25 35 45", "3333"), 128, [43, 43, 43, 42, 128]),  # the first feeds 43 and 42
        (notation("01", ""), 7, [7]),
    ],
)
def test_widths(architecture, out, widths):
    assert vertex_widths(parse(architecture), out) == widths


def test_useless_vertices_are_pruned():
    alone = parse(notation("01 12", "3"))
    assert alone == [Vertex("3", [], True), Vertex("", [1], False)]
    to_nowhere, from_nowhere = notation("01 02 13", "31"), notation("02 12 23", "13")
    assert parse(to_nowhere) == parse(from_nowhere) == alone
    assert BENCHMARK.params(to_nowhere) == BENCHMARK.params("3:101:3")
    assert BENCHMARK.topology(to_nowhere) == BENCHMARK.topology("3:101:3")


def test_cell_adds_truncates_and_concatenates():
    cell = parse(notation("01 03 12 13 14 24 34", "313"))
    module = Cell(cell, 4, 5).eval()
    assert vertex_widths(cell, 5) == [2, 2, 1, 5]
    x = torch.randn(1, 4, 6, 6)
    v1 = module.ops[0](module.projections["1"](x))
    v2 = module.ops[1](v1)
    v3 = module.ops[2](v1[:, :1] + module.projections["3"](x))
    assert torch.allclose(module(x), torch.cat([v1, v2, v3], 1))
    assert list(module.projections) == ["1", "3"]


def test_the_input_is_added_to_the_output():
    module = Cell(parse("3:111:p"), 4, 4).eval()
    x = torch.randn(1, 4, 6, 6)
    pooled = nn.functional.max_pool2d(module.projections["1"](x), 3, 1, 1)
    assert torch.allclose(module(x), pooled + module.projections["2"](x))


def test_stacks():
    network = BENCHMARK.network("3:101:3").eval()
    seen = []
    for module in network:
        module.register_forward_hook(lambda *call: seen.append(tuple(call[-1].shape[1:])))
    network(torch.randn(1, 3, 32, 32))
    stacks = [(128, 32, 32)] * 4 + [(128, 16, 16)] + [(256, 16, 16)] * 3 + [(256, 8, 8)] + [(512, 8, 8)] * 3
    assert seen == [*stacks, (512, 1, 1), (512,), (10,)]
    assert [type(module) for module in network[0]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    norm = network[0][1]
    assert norm.momentum == pytest.approx(1 - 0.997) and norm.eps == 1e-5


def test_topology():
    topology = BENCHMARK.topology("7:100110100001001010101:3p331")
    assert topology.largest_pool == 3
    (block,) = topology.blocks
    assert block.convs == {3: 3, 1: 1} and block.pools == {3: 1} and block.channels == 128
    assert BENCHMARK.topology("2:1:").blocks == (Block(8, {3: 0, 1: 0}, {3: 0}, 0, 128),)
    # into 2 come 0 and 1: one branch; into the output 2 and, beside it, 0: another
    assert BENCHMARK.topology(notation("01 02 03 12 23", "3p")).blocks[0].skips == 2
    assert BENCHMARK.topology("3:111:3").blocks[0].skips == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("3:10:3", "2 digits"),
        ("3:101:33", "2 operations"),
        ("3:101:5", "must be a number"),
        ("3:102:3", "must be a number"),
        ("8:1:3", "from 2 to 7"),
        ("3:100:3", "no path"),
        ("2:0:", "no path"),
        ("5:1111111111:333", "10 edges"),
        ("3:101:3\n", "must be a number"),
        ("\u0663:101:3", "must be a number"),
    ],
)
def test_refused(wrong, words, refused):
    for call in (BENCHMARK.network, BENCHMARK.params, BENCHMARK.topology):
        refused(lambda: call(wrong), words)


# The official file, as nasbench's own protocol buffer and TensorFlow's record format describe it


def metrics_class():
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_metrics.proto", package="nasbench")
    evaluation = file.message_type.add(name="EvaluationData")
    names = ("current_epoch", "training_time", "train_accuracy", "validation_accuracy", "test_accuracy")
    for number, name in enumerate(names, 1):
        evaluation.field.add(name=name, number=number, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
    evaluation.field.add(name="checkpoint_path", number=6, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    metrics = file.message_type.add(name="ModelMetrics")
    metrics.field.add(
        name="evaluation_data",
        number=1,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=".nasbench.EvaluationData",
    )
    metrics.field.add(name="trainable_parameters", number=2, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)
    metrics.field.add(name="total_time", number=3, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nasbench.ModelMetrics"))


def record(key, epochs, matrix, ops, accuracies, params=7):
    metrics = metrics_class()(trainable_parameters=params, total_time=2.0)
    for accuracy in accuracies:
        metrics.evaluation_data.add(test_accuracy=accuracy, train_accuracy=1.0, checkpoint_path="model.ckpt-1")
    raw = base64.encodebytes(metrics.SerializeToString()).decode()
    return json.dumps([key, epochs, matrix, ops, raw]).encode()


def frame(data):
    return struct.pack("<QI", len(data), 1) + data + struct.pack("<I", 2)


CHAIN = ("010001000", "input,conv3x3-bn-relu,output")
WIDE = ("0110" + "0011" + "0001" + "0000", "input,maxpool3x3,conv1x1-bn-relu,output")
RECORDS = [
    record("b", 108, *WIDE, [0.1, 0.5, 0.9], params=11),
    record("a", 108, *CHAIN, [0.1, 0.5, 0.8]),
    record("b", 108, *WIDE, [0.1, 0.5, 0.6]),
    record("b", 36, *WIDE, [0.1, 0.2, 0.3]),
]


def test_official_file(tmp_path):
    path = tmp_path / "nasbench_only108.tfrecord"
    path.write_bytes(b"".join(map(frame, RECORDS)))
    first, second = BENCHMARK.read(path)
    assert (first.architecture, first.params, second.architecture, second.params) == ("4:110111:p1", 11, "3:101:3", 7)
    assert first.accuracy == pytest.approx(75) and second.accuracy == pytest.approx(80)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no architecture"),
        (frame(RECORDS[3]), "no architecture"),
        (b"short", "record 1 "),
        (frame(RECORDS[0]) + frame(RECORDS[1])[:-1], "record 2 "),
        (struct.pack("<QI", 2**62, 0), "record 1 "),
        (frame(b"{]"), "record 1 "),
        (frame(RECORDS[0]) + frame(b"[1, 2]"), "record 2 "),
        (frame(json.dumps(["a", 108, *CHAIN, "AAAA"]).encode()), "record 1 "),
        (frame(record("a", 108, *CHAIN, [])), "record 1 "),
        (frame(record("a", 108, "0", CHAIN[1], [0.5])), "record 1 "),
        (frame(record("a", 108, CHAIN[0], "input,conv7x7,output", [0.5])), "record 1 "),
        (frame(record("a", 108, *CHAIN, [50.0])), "percent"),
    ],
)
def test_damaged_official_file(tmp_path, refused, content, words):
    path = tmp_path / "damaged.tfrecord"
    path.write_bytes(content)
    refused(lambda: BENCHMARK.read(path), str(path), words)
    refused(lambda: BENCHMARK.read(tmp_path / "absent.tfrecord"), "No such file")


@pytest.mark.parametrize(
    ("cell", "passed"),
    [
        ("2:1:", 0),
        ("3:101:3", 0),
        ("3:111:3", 1),  # from the input to the output, past the one vertex
        ("4:111111:3p", (1 + 2 + 1) / 3),  # 0 to 2, 0 to 3, 1 to 3
        ("4:110001:3p", 0),  # vertex 1 leads nowhere, and without it nothing is passed over
    ],
)
def test_skipped_layers_are_the_vertices_that_edges_pass_over(cell, passed):
    assert BENCHMARK.counts["skipped_layers"](cell) == pytest.approx(passed)
