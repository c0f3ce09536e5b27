"""The table of trained ESFormers: written and read again, refused where it is damaged, and a benchmark like others."""

from dataclasses import replace

import pytest

from esformer import benchmarks
from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.esformers import COLUMNS, ESFormers, Training, read_trainings, write_trainings
from esformer.genotype import Genotype, notation, parse
from esformer.model.cost import cost

REFERENCE = Genotype.shipped("efficientformerv2_s0")


def training(**changes):
    price = cost(REFERENCE, 48, 10)
    made = Training(
        notation(REFERENCE), "reference", 0, price.params, price.macs, (40.5, 61.25), (), 99.5, "torch 2.14"
    )
    return replace(made, **changes)


def test_a_table_is_read_as_it_was_written(tmp_path):
    rows = [training(), training(seed=1, top1=(50.0,), ema_top1=(1.0,))]
    write_trainings(tmp_path / "table.csv", rows)
    assert read_trainings(tmp_path / "table.csv") == rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(top1=()), "top1 is ''; it must hold a percentage for each epoch"),
        (dict(top1=(101.0,)), "top1 is '101.0'"),
        (dict(top1=(float("nan"),)), "top1 is 'nan'"),
        (dict(seed="a"), "training 2.*'a'"),
        (dict(seed=0), "seed 0 of this genotype is there twice"),
        (dict(genotype="S0: ibn"), "must be a genotype"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, changes, message):
    write_trainings(tmp_path / "table.csv", [training(), training(seed=1), training(**{"seed": 2} | changes)])
    with pytest.raises(BenchmarkError, match=message.replace("training 2", "training 3")):
        read_trainings(tmp_path / "table.csv")


def test_an_empty_table_is_refused(tmp_path):
    write_trainings(tmp_path / "table.csv", [])
    with pytest.raises(BenchmarkError, match="holds no training"):
        read_trainings(tmp_path / "table.csv")


def test_a_table_without_a_column_is_refused(tmp_path):
    (tmp_path / "table.csv").write_text(",".join(COLUMNS[1:]) + "\n")
    with pytest.raises(BenchmarkError, match="has no column genotype"):
        read_trainings(tmp_path / "table.csv")


def test_an_architecture_has_the_mean_of_its_seeds(tmp_path):
    write_trainings(tmp_path / "table.csv", [training(), training(seed=1, top1=(1.0, 63.25))])
    benchmark = benchmarks.get("esformer")
    (entry,) = benchmark.read(tmp_path / "table.csv")
    price = cost(REFERENCE, 48, 10)
    assert (entry.accuracy, entry.params, entry.macs) == (62.25, price.params, price.macs)
    network = benchmark.network(entry.architecture)
    assert sum(parameter.numel() for parameter in network.parameters()) == benchmark.params(entry.architecture)
    assert benchmark.subject(entry.architecture) == REFERENCE


def test_the_shipped_table_holds_what_it_says():
    table = read_trainings(ESFormers.shipped)
    for row in table:
        price = cost(parse(row.genotype), 48, 10)
        assert (row.params, row.macs) == (price.params, price.macs)
        assert len(row.top1) == len(row.ema_top1) == 5
    assert len({(row.genotype, row.seed) for row in table}) == len(table)
