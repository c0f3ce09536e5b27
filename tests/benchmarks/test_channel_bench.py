import csv
import gzip
import random

import pytest
import torch

from esformer.benchmarks import get
from esformer.topology import Block

BENCHMARK = get("channel-bench-resnet")
TABLE = "channel_bench_macro_resnet.csv.gz"


def test_every_row(table, counted_as_built):
    entries = BENCHMARK.read(table(TABLE))
    assert len(entries) == 4**7
    assert entries[0].architecture == "1111111" and entries[0].accuracy == 91.7
    assert all(BENCHMARK.params(entry.architecture) == entry.params for entry in entries)
    counted_as_built(BENCHMARK, [entry.architecture for entry in random.Random(0).sample(entries, 30)])


def test_flops_of_the_table(table, macs):
    with gzip.open(table(TABLE), "rt") as file:
        rows = random.Random(0).sample(list(csv.DictReader(file)), 20)
    with torch.device("meta"):
        for row in rows:
            assert macs(BENCHMARK.network(row["arch"]), 32) == int(row["flops"])


def test_published_parameters():
    assert BENCHMARK.params("1111111") == 963_658
    assert BENCHMARK.params("4444444") == 15_356_170


def test_only_the_pair_of_stride_2_has_no_skip():
    network = BENCHMARK.network("1111111").eval()
    for block in network[3:8]:
        torch.nn.init.zeros_(block.bn2.weight)
        x = torch.rand(1, block.conv1.in_channels, 8, 8)
        out = block(x)
        assert torch.equal(out, x) if block.conv1.stride == (1, 1) else (out.shape[-1] == 4 and not out.any())


def test_topology():
    blocks = BENCHMARK.topology("1234123").blocks
    assert [block.channels for block in blocks] == [64, 128, 192, 512, 128, 256, 384]
    assert [block.shrink for block in blocks] == [4, 1, 1, 4, 1, 1, 1]
    assert blocks[0] == Block(1, {3: 1}, channels=64, shrink=4)


@pytest.mark.parametrize(
    "wrong", ["111111", "11111111", "1111115", "0111111", "111111 ", "111111a", "1111111\n", "\u0661" * 7]
)
def test_refused(wrong, refused):
    refused(lambda: BENCHMARK.network(wrong), "7 digits from 1 to 4")
