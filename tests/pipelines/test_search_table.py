"""`pipelines.search --space NAME --table FILE` as a user types it."""

import csv
import json
import random
from pathlib import Path

import pytest
import yaml
from PIL import Image

from configs.compose import compose
from esformer.benchmarks import get
from esformer.benchmarks.darts import Darts
from esformer.errors import ESFormerError
from esformer.proxies import get as get_proxy
from pipelines import search

SHORT = ("search=naswot", "search.start_length=60", "search.total=60", "search.start_population=10")
COMMAND = ["--space", "nats-sss", "--table", "sss.csv", *SHORT, "search.start_proxy=accuracy", "wandb.mode=disabled"]


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    """A part of the size space, whose accuracies are made of its widths."""
    monkeypatch.chdir(tmp_path)
    benchmark, rng = get("nats-sss"), random.Random(0)
    rows = {benchmark.spell([rng.choice(gene) for gene in benchmark.genes]): None for _ in range(500)}
    accuracies = {row: 50 + sum(map(int, row.split(":"))) / 8 for row in rows}
    (tmp_path / "sss.csv").write_text("\n".join(["arch,cifar10_test", *(f"{a},{b}" for a, b in accuracies.items())]))
    return accuracies


def test_what_is_found_is_told_with_its_rank_and_its_regret(table, tmp_path, capsys):
    found = search.main([*COMMAND, "run.dir=r"])
    best = max(table.values())
    above = sum(accuracy > found["accuracy"] for accuracy in table.values())
    assert found["accuracy"] == table[found["architecture"]] == found["search_score"]["accuracy"]
    assert (found["best"], found["regret"]) == (best, best - found["accuracy"]) and found["rank"] == above + 1
    assert found["among"] == len(table) and found["search_evaluations"] == 60
    assert f"rank {above + 1} of {len(table)}; the best has {best:.2f} %" in capsys.readouterr().out
    assert yaml.safe_load(Path("r/architecture.yaml").read_text())["architecture"] == found["architecture"]
    rows = list(csv.DictReader(Path("r/search.csv").read_text().splitlines()))
    assert len(rows) == 60 and max(float(row["accuracy"]) for row in rows) == found["accuracy"]
    with Image.open("r/search.png") as picture:
        assert min(picture.size) > 400
    assert json.loads(Path("r/summary.json").read_text()) == found == search.main([*COMMAND, "run.dir=r"])


def test_equals_are_counted_and_the_first_of_them_is_found(tmp_path, capsys):
    rows = ("8:8:8:8:8,90", "8:8:8:8:16,90", "8:8:8:8:24,80", "8:8:8:8:32,90")
    (tmp_path / "sss.csv").write_text("\n".join(["arch,cifar10_test", *rows]))
    found = search.main([*COMMAND, "run.dir=r"])
    lines = [json.loads(line) for line in Path("r/journal.jsonl").read_text().splitlines()[1:]]
    first = next(line["genotype"]["architecture"] for line in lines if line["scores"]["accuracy"] == 90)
    assert (found["architecture"], found["search_ties"]) == (first, 3)
    assert "3 of the architectures evaluated have its score; it is the first" in capsys.readouterr().out


def test_sed_on_darts_takes_the_best_of_random_genotypes():
    few = (
        "search.start_length=80",
        "search.total=80",
        "search.start_population=80",
        "run.dir=r",
        "wandb.mode=disabled",
    )
    found = search.main(["--space", "darts", "search=sed", *few])
    lines = [json.loads(line) for line in Path("r/journal.jsonl").read_text().splitlines()[1:]]
    best = max(lines, key=lambda line: line["scores"]["sed"])
    assert found["architecture"] == best["genotype"]["architecture"] and "accuracy" not in found
    assert {line["origin"] for line in lines} == {"sample"} and len(lines) == 80
    darts, proxy = Darts(36, 20), get_proxy("sed")
    assert found["search_score"]["sed"] == pytest.approx(proxy.values(darts.topology(found["architecture"]))[1])
    assert found["params"] == darts.params(found["architecture"]) and found["search_ties"] == 1


def test_its_report_shows_every_architecture():
    found = search.main([*COMMAND, "run.dir=r"])
    page = Path("r/report.html").read_text()
    evaluated = [json.loads(line) for line in Path("r/journal.jsonl").read_text().splitlines()[1:]]
    assert all(f'"{line["genotype"]["architecture"]}"' in page for line in evaluated)
    assert f"<td>{found['architecture']}</td>" in page and "<td>nats-sss/cifar10</td>" in page
    assert "None was found yet" not in page and "FFN.kernel" not in page


@pytest.mark.nightly
def test_a_killed_search_goes_on_to_the_same_end(tmp_path):
    whole = search.main([*COMMAND, "run.dir=whole"])
    search.main([*COMMAND, "run.dir=killed"])
    journal = tmp_path / "killed" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:30]) + lines[30][:40])
    (tmp_path / "killed" / "summary.json").unlink()
    again = search.main([*COMMAND, "run.dir=killed"])
    assert again["architecture"] == whole["architecture"] and again["search_evaluations"] == 60
    genotypes = [
        [json.loads(line).get("genotype") for line in file.read_bytes().splitlines()]
        for file in (tmp_path / "whole" / "journal.jsonl", journal)
    ]
    assert genotypes[0] == genotypes[1]


def test_a_table_that_was_changed_is_another_search(table, tmp_path):
    search.main([*COMMAND, "run.dir=r"])
    (tmp_path / "r" / "summary.json").unlink()
    text = (tmp_path / "sss.csv").read_text().splitlines()
    (tmp_path / "sss.csv").write_text("\n".join([text[0], *text[:0:-1]]))  # another order says the same
    search.main([*COMMAND, "run.dir=r"])
    (tmp_path / "r" / "summary.json").unlink()
    (tmp_path / "sss.csv").write_text("\n".join(text[:-1]))
    with pytest.raises(ESFormerError, match="is the journal of another search: table was"):
        search.main([*COMMAND, "run.dir=r"])


def test_it_is_tried_before_it_runs(tmp_path):
    tried = search.main([*COMMAND, "run.dir=r", "--dry-run"])
    assert tried["search_evaluations_per_second"] > 0 and not (tmp_path / "r").exists()


def test_the_last_space_counts():
    again = compose("S0", overrides=["space.name=nats-sss", "space.table=x", "space.name=null", "space.table=null"])
    assert again == compose("S0")


def test_the_limits_of_a_size_do_not_count_and_those_of_the_command_do(table):
    found = search.main([*COMMAND, "budget.params=100000", "run.dir=r"])
    assert found["params"] <= 100000 and found["among"] < len(table)
    config = yaml.safe_load(Path("r/config.yaml").read_text())
    assert config["budget"] == {"params": 100000.0, "macs": None, "latency_ms": None, "latency": None}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["search=paper", "search.start_length=3", "search.total=60"],
            "phase topology 1 changes topology genes, and space nats-sss/cifar10 has size genes alone",
        ),
        (["search.finalists=3"], "search.finalists trains ESFormers"),
        (["--dataset", "svhn"], "nats-sss has no dataset 'svhn'; it has cifar10"),
        (["--space", "darts"], "space darts is searched without a table"),
        (["--space", "nats"], "there is no space 'nats'; there are nats-tss"),
        (["--table", "nothing.csv"], "nothing.csv: cannot be read"),
        (["search.start_proxy=acuracy"], "there is no proxy 'acuracy'"),
        (["--space", "nats-tss"], "sss.csv: has no column"),
        (["budget.macs=auto"], "budget.macs=auto is that of a size"),
        (["--speed", "2"], "--speed and --replay know ESFormers alone"),
        (["--points", "1e6"], "--points are those of a family"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(more, says):
    with pytest.raises(ESFormerError, match=says):
        search.main([*COMMAND, *more, "run.dir=r"])


def test_a_space_without_a_table_and_a_table_without_a_space():
    with pytest.raises(ESFormerError, match="space nats-tss needs its table: give the file with --table"):
        search.main(["--space", "nats-tss"])
    with pytest.raises(ESFormerError, match="name the space that it is of"):
        search.main(["--table", "sss.csv"])


def test_other_commands_know_no_tables():
    from pipelines import train

    with pytest.raises(ESFormerError, match="nats-sss is a setting of pipelines.search and pipelines.ablate alone"):
        train.main(["--quick", "space.name=nats-sss", "space.table=sss.csv"])
