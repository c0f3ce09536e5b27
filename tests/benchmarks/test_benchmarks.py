import pytest

from esformer.benchmarks import get, names
from esformer.genotype import Genotype, notation
from esformer.topology import Topology

ONE_OF = {
    "nasbench101": "7:100110100001001010101:3p331",
    "nats-tss": "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|",
    "nats-sss": "8:16:24:32:40",
    "channel-bench-resnet": "1111211",
    "darts": f"Genotype(normal={[('sep_conv_3x3', 0), ('skip_connect', 1)] * 4}, normal_concat=[2, 3, 4, 5], "
    f"reduce={[('max_pool_3x3', 0), ('none', 1)] * 4}, reduce_concat=[2, 3, 4, 5])",
    "esformer": notation(Genotype.shipped("efficientformerv2_s0")),
}


def test_all_are_registered(refused):
    assert names() == list(ONE_OF)
    assert [get(name).name for name in names()] == names()
    assert all("http" in get(name).source for name in names() if get(name).shipped is None)
    refused(lambda: get("nasbench"), "'nasbench'", *names())


@pytest.mark.parametrize("name", ONE_OF)
def test_contract(name, refused, behaves, counted_as_built):
    benchmark, architecture = get(name), ONE_OF[name]
    for dataset in benchmark.datasets:
        behaves(benchmark, architecture, dataset)
        counted_as_built(benchmark, [architecture], dataset)
    topology = benchmark.topology(architecture)
    assert isinstance(topology, Topology)
    for block in topology.blocks:
        operations = sum(block.convs.values()) + sum((block.pools or {}).values()) + (block.skips or 0)
        assert 0 < operations <= block.slots


@pytest.mark.parametrize("name", ONE_OF)
@pytest.mark.parametrize("wrong", ["", "7", "none", "1:1:", "64:64:64:64", "é\x00\n(" * 500, "(" * 100_000])
def test_wrong_architectures_are_refused(name, wrong, refused):
    benchmark = get(name)
    for call in (benchmark.network, benchmark.params, benchmark.topology):
        refused(lambda: call(wrong), "must")
    other = next(one for kind, one in ONE_OF.items() if kind != name)
    refused(lambda: benchmark.params(other), "must")


@pytest.mark.parametrize("name", ONE_OF)
def test_wrong_datasets_and_tables_are_refused(name, refused, tmp_path):
    benchmark, architecture = get(name), ONE_OF[name]
    file = tmp_path / "table.csv"
    refused(lambda: benchmark.read(file), str(file), "No such file")
    refused(lambda: benchmark.read(file, "mnist"), "'mnist'", "cifar10")
    refused(lambda: benchmark.params(architecture, "mnist"), "'mnist'", "cifar10")
    refused(lambda: benchmark.network(architecture, "mnist"), "'mnist'", "cifar10")
    file.write_text("a,b\n1,2\n")
    refused(lambda: benchmark.read(file), str(file), "no column")
