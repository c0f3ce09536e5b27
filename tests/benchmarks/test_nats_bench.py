import bz2
import csv
import gzip
import itertools
import pickle
import random
import sys
import timeit

import numpy as np
import pytest
import torch
from torch import nn

from esformer.benchmarks import get
from esformer.benchmarks.base import Entry
from esformer.benchmarks.nats_bench import (
    OPS,
    SIZE_CELL,
    Cell,
    ResidualBlock,
    cell_ops,
    edge,
    skipped_layers,
    topologies,
)
from esformer.topology import Block

TSS, SSS = get("nats-tss"), get("nats-sss")
TABLE = "natsbench_tss_nb201.csv.gz"
COLUMNS = {"cifar10": "c10", "cifar100": "c100", "imagenet16-120": "im"}
EVERY = ["|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops) for ops in itertools.product(OPS, repeat=6)]
CONV3 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"

# nats_bench's get_cost_info: parameters, and FLOPs (with one for each bias) on the three datasets
OFFICIAL_SSS = {
    "8:8:8:8:8": ((11_714, 12_524, 12_704), (4_481_114, 4_481_924, 1_121_336)),
    "8:8:8:16:32": ((49_202, 52_172, 52_832), (6_840_650, 6_843_620, 1_714_040)),
    "8:8:40:32:40": ((144_834, 148_524, 149_344), (21_827_994, 21_831_684, 5_461_816)),
}
OFFICIAL_TSS = {
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|": (
        (129_306, 135_156, 136_456),
        (15_647_370, 15_653_220, 3_919_480),
    ),
    "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|none~0|nor_conv_1x1~1|none~2|": (
        (101_306, 107_156, 108_456),
        (11_715_210, 11_721_060, 2_936_440),
    ),
}


@pytest.mark.parametrize(("benchmark", "official"), [(TSS, OFFICIAL_TSS), (SSS, OFFICIAL_SSS)], ids=["tss", "sss"])
def test_official_costs(benchmark, official, macs):
    for architecture, (params, flops) in official.items():
        for dataset, wanted, flop in zip(benchmark.datasets, params, flops, strict=True):
            known = benchmark.datasets[dataset]
            with torch.device("meta"):
                network = benchmark.network(architecture, dataset)
                assert macs(network, known.img_size) + known.num_classes == flop
            assert benchmark.params(architecture, dataset) == wanted == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("dataset", COLUMNS)
def test_every_row(table, dataset, counted_as_built):
    entries = TSS.read(table(TABLE), dataset)
    assert sorted(entry.architecture for entry in entries) == sorted(EVERY)
    assert max(entry.accuracy for entry in entries) == pytest.approx(
        {"c10": 94.37, "c100": 73.51, "im": 47.31}[COLUMNS[dataset]], abs=0.01
    )
    assert all(TSS.params(entry.architecture, dataset) == entry.params for entry in entries)
    counted_as_built(TSS, [entry.architecture for entry in random.Random(0).sample(entries, 20)], dataset)


def test_macs_of_the_table_grow_like_ours(table, macs):
    """They also count norms, activations and poolings, which a kernel does not change."""
    with gzip.open(table(TABLE), "rt") as file:
        theirs = {row["arch"]: int(row["c10_macs"]) for row in csv.DictReader(file)}
    with torch.device("meta"):
        ours = {cell: macs(TSS.network(cell), 32) for cell in (CONV3, CONV3.replace("3x3~2", "1x1~2"))}
    (more, less), (their_more, their_less) = ours.values(), (theirs[cell] for cell in ours)
    assert (
        more - less == their_more - their_less == 8 * sum(5 * c * c * s * s for c, s in ((16, 32), (32, 16), (64, 8)))
    )


def test_sizes_built(counted_as_built):
    widths = random.Random(0)
    some = [":".join(str(8 * widths.randint(1, 8)) for _ in range(5)) for _ in range(20)]
    for dataset in SSS.datasets:
        counted_as_built(SSS, some, dataset)


def test_cell_follows_the_notation():
    architecture = "|nor_conv_1x1~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    cell = Cell(cell_ops(architecture), 4, 4).eval()
    x = torch.randn(2, 4, 6, 6)
    nodes, edges = [x], iter(cell.edges)
    for node in architecture.split("+"):
        inputs = [int(op.split("~")[1]) for op in node.strip("|").split("|")]
        nodes.append(sum(next(edges)(nodes[source]) for source in inputs))
    assert torch.allclose(cell(x), nodes[3])
    assert [type(module[0] if isinstance(module, nn.Sequential) else module) for module in cell.edges] == [
        *(nn.ReLU, nn.ReLU, nn.AvgPool2d, nn.Identity),
        type(edge("none", 4, 4)),
        nn.ReLU,
    ]


def test_operations():
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(edge("none", 4, 4)(x), torch.zeros_like(x))
    assert torch.equal(edge("skip_connect", 4, 4)(x), x)
    assert edge("skip_connect", 4, 6)(x).shape == (1, 6, 5, 5)
    assert torch.allclose(edge("avg_pool_3x3", 4, 4)(torch.ones(1, 4, 5, 5)), torch.ones(1, 4, 5, 5))  # also at edges
    conv = edge("nor_conv_3x3", 4, 4)
    assert not conv.eval()(-x.abs()).any()  # the activation comes first


def test_order_of_the_network():
    kinds = [type(module) for module in TSS.network(CONV3)]
    assert kinds[:2] == [nn.Conv2d, nn.BatchNorm2d]  # the activation is the first cell's
    assert kinds[2:-5] == [*[Cell] * 5, ResidualBlock] * 2 + [Cell] * 5
    assert kinds[-5:] == [nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert [type(module) for module in SSS.network("8:8:8:8:8")][2:-5] == [
        Cell,
        ResidualBlock,
        Cell,
        ResidualBlock,
        Cell,
    ]


def test_residual_block_averages_its_shortcut():
    block = ResidualBlock(1, 1).eval()
    nn.init.zeros_(block.conv_b[-1].weight)
    nn.init.ones_(block.downsample[1].weight)
    assert torch.equal(block(torch.arange(16.0).view(1, 1, 4, 4))[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))


def test_a_network_of_nothing_gives_its_bias(behaves):
    nothing = CONV3.replace("nor_conv_3x3", "none")
    network = TSS.network(nothing).eval()
    assert torch.allclose(network(torch.randn(2, 3, 32, 32)), network[-1].bias.expand(2, 10), atol=1e-6)
    behaves(TSS, nothing)


def test_topology():
    cell = next(iter(OFFICIAL_TSS))
    assert TSS.topology(cell).largest_pool == 3
    assert TSS.topology(cell).blocks == (Block(6, {3: 0, 1: 2}, {3: 1}, 3, channels=16),)
    sizes = SSS.topology("8:16:24:32:40")
    assert sizes.largest_pool is None
    assert sizes.blocks == tuple(
        Block(5, {3: 5}, channels=width, shrink=shrink) for width, shrink in zip((8, 16, 24, 32, 40), (1, 4, 1, 4, 1))
    )


def test_many_topologies_are_each_of_them():
    (block,) = topologies(EVERY).blocks
    for count in (block.convs[3], block.convs[1], block.pools[3], block.skips):
        assert count.shape == (len(EVERY),)
    for index in [*range(50), *random.Random(0).sample(range(len(EVERY)), 500)]:
        one = TSS.topology(EVERY[index]).blocks[0]
        assert (one.convs[3], one.convs[1]) == (block.convs[3][index], block.convs[1][index])
        assert (one.pools[3], one.skips) == (block.pools[3][index], block.skips[index])
    assert np.size(topologies([]).blocks[0].skips) == 0


def test_many_topologies_are_fast():
    each = min(timeit.repeat(lambda: topologies(EVERY), number=1, repeat=5)) / len(EVERY)
    assert each < 10e-6  # 0.5 microseconds where nothing else runs


@pytest.mark.parametrize(
    "wrong",
    [
        CONV3.replace("nor_conv_3x3~2", "nor_conv_5x5~2"),
        CONV3.replace("~2|", "~1|"),
        CONV3 + "\n",
        CONV3 + "\n" + CONV3,
        CONV3[:-1],
        "|" + CONV3,
        SIZE_CELL.replace("skip_connect", "max_pool_3x3"),
    ],
)
def test_wrong_cells_are_refused(wrong, refused):
    refused(lambda: TSS.network(wrong), "must look like")
    refused(lambda: TSS.topology(wrong), "must look like")
    refused(lambda: topologies([CONV3, wrong]), "must look like")


@pytest.mark.parametrize("wrong", ["8:8:8:8", "8:8:8:8:8:8", "0:8:8:8:8", "8:8:8:8:72", "8:8:8:8:9", "8:8:8:8:8\n"])
def test_wrong_sizes_are_refused(wrong, refused):
    refused(lambda: SSS.network(wrong), "5 widths")


def test_sizes_from_csv(tmp_path, refused):
    path = tmp_path / "sss.csv"
    path.write_text("arch,cifar10_test,imagenet16-120_test\n8:8:8:8:8,79.79,15.53\n8:8:8:8:16,80,20\n")
    assert SSS.read(path) == [Entry("8:8:8:8:8", 79.79), Entry("8:8:8:8:16", 80.0)]
    assert SSS.read(path, "imagenet16-120")[0] == Entry("8:8:8:8:8", 15.53)
    refused(lambda: SSS.read(path, "cifar100"), "cifar100_test")
    refused(lambda: TSS.read(path), "c10_test200")


# The official files, as nats_bench's own API reads them


def trial(dataset, seed, epochs, sets):
    """One training: accuracies 1, 2, 3, ... in training; `sets` gives the last of each evaluation."""
    evaluations = {f"{name}@{e}": last - (epochs - 1 - e) for name, last in sets.items() for e in range(epochs)}
    return {
        "name": dataset,
        "seed": seed,
        "epochs": epochs,
        "train_acc1es": {e: e + 1.0 for e in range(epochs)},
        "train_losses": dict.fromkeys(range(epochs), 1.0),
        "train_times": dict.fromkeys(range(epochs), 1.0),
        "eval_names": list(sets),
        "eval_acc1es": evaluations,
        "eval_losses": dict.fromkeys(evaluations, 1.0),
        "eval_times": dict.fromkeys(evaluations, 1.0),
        "params": 0.1,
        "flop": 1.0,
        "latency": [0.1],
        "arch_config": {},
        "net_state_dict": None,
    }


def results(index, architecture, epochs):
    """Two seeds on CIFAR-10, whose mean is 80 + index; CIFAR-100 has a test half of its 'ori-test'."""
    trials = {
        ("cifar10", seed): trial("cifar10", seed, epochs, {"ori-test": 80.0 + index + d})
        for seed, d in ((777, -1), (888, 1))
    }
    trials["cifar100", 777] = trial("cifar100", 777, epochs, {"x-valid": 1.0, "x-test": 50.0 + index, "ori-test": 2.0})
    return {
        "arch_index": index,
        "arch_str": architecture,
        "all_results": trials,
        "dataset_seed": {"cifar10": [777, 888], "cifar100": [777]},
        "clear_net_done": True,
    }


@pytest.fixture(params=["tss", "sss"])
def official(request, tmp_path):
    """A file and a folder of three architectures, of which the second has not been trained."""
    pytest.importorskip("nats_bench", reason='needs pip install -e ".[benchmarks]"')
    benchmark, architectures = {
        "tss": (TSS, [CONV3, SIZE_CELL, next(iter(OFFICIAL_TSS))]),
        "sss": (SSS, list(OFFICIAL_SSS)),
    }[request.param]
    infos = {
        i: {
            str(benchmark.epochs): results(i, architectures[i], benchmark.epochs),
            "12": results(40, architectures[i], 12),
        }
        for i in (0, 2)
    }
    meta = {"meta_archs": architectures, "arch2infos": infos, "evaluated_indexes": {0, 2}, "total_archs": 3}
    file, folder = tmp_path / "NATS-v1_0-1.pickle.pbz2", tmp_path / "NATS-v1_0-1-simple"
    folder.mkdir()
    file.write_bytes(bz2.compress(pickle.dumps(meta)))
    contents = {
        "meta": meta | {"arch2infos": None, "evaluated_indexes": set()},
        **{f"{i:06d}": infos[i] for i in infos},
    }
    for name, content in contents.items():
        (folder / f"{name}.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps(content)))
    return benchmark, file, folder, [architectures[0], architectures[2]]


def test_official_files(official, refused):
    benchmark, file, folder, architectures = official
    for table in (file, folder):
        assert benchmark.read(table) == [Entry(architectures[0], 80.0), Entry(architectures[1], 82.0)]
        assert benchmark.read(table, "cifar100") == [Entry(architectures[0], 50.0), Entry(architectures[1], 52.0)]
        refused(lambda: benchmark.read(table, "imagenet16-120"), str(table))
        refused(lambda: (SSS if benchmark is TSS else TSS).read(table), str(table))


def test_damaged_official_files(official, refused, tmp_path):
    benchmark, file, folder, _ = official
    file.write_bytes(b"junk")
    refused(lambda: benchmark.read(file), str(file), "official")
    refused(lambda: benchmark.read(tmp_path / "absent.pickle.pbz2"), "absent.pickle.pbz2")
    (folder / "meta.pickle.pbz2").unlink()
    refused(lambda: benchmark.read(folder), str(folder))


def test_official_files_need_the_package(monkeypatch, refused, tmp_path):
    monkeypatch.setitem(sys.modules, "nats_bench", None)
    refused(lambda: TSS.read(tmp_path), 'pip install -e ".[benchmarks]"')


@pytest.mark.parametrize(
    ("cell", "passed"),
    [
        ("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|", 2),
        ("|skip_connect~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|", 1),
        ("|skip_connect~0|+|skip_connect~0|skip_connect~1|+|none~0|nor_conv_3x3~1|none~2|", 1 / 3),
        ("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|", 0),
    ],
)
def test_skipped_layers_are_the_nodes_that_a_skip_connection_passes_over(cell, passed):
    assert skipped_layers(cell) == pytest.approx(passed)
