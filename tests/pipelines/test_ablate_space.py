"""`pipelines.ablate --space NAME --table FILE`: every method searches as it says, and what it found is looked up."""

import csv
import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from configs.compose import to_yaml
from esformer.benchmarks import get
from esformer.errors import ESFormerError
from esformer.search.journal import read
from pipelines import ablate
from pipelines.runtime import ablating_space, cli

SPACE = ["--space", "nats-sss", "--table", "sss.csv"]
SHORT = ["search.total=60", "search.start_length=10", "search.phase_length=15", "search.start_population=5"]
SHORT += ["search.population=12", "search.start_tournament=2", "search.in_flight=2", "wandb.mode=disabled"]
VARIANTS = ("random", "rea", "one-phase", "one-start", "one-gene", "no-crossover")
METHODS = ["accuracy", *(f"accuracy@{variant}" for variant in VARIANTS), "sed", "macs - 0.5*parameters"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Holds a part of the size space, whose accuracies are made of its widths."""
    folder = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("callbacks.search.draw_search", lambda *args: None)
        benchmark, rng = get("nats-sss"), random.Random(0)
        rows = {benchmark.spell([rng.choice(gene) for gene in benchmark.genes]): None for _ in range(3000)}
        lines = [f"{row},{50 + sum(map(int, row.split(':'))) / 8}" for row in rows]
        (folder / "sss.csv").write_text("\n".join(["arch,cifar10_test", *lines]))
        yield folder


def run(name, *arguments, methods=METHODS, seeds=2):
    asked = [f"ablate.methods=[{','.join(methods)}]", f"ablate.seeds={seeds}", f"run.dir={name}"]
    return ablate.main([*SPACE, *SHORT, *asked, *arguments])


@pytest.fixture(scope="module")
def done(folder):
    return folder / "run", run("run")


def journal(path, method, seed=0):
    return list(read(path / "search" / f"{method}-{seed}" / "journal.jsonl"))


def widths(line):
    return [int(width) for width in line.genotype["architecture"].split(":")]


def test_a_line_for_each_search_says_how_good_its_find_is(done, folder):
    path, rows = done
    assert [(row["method"], row["seed"]) for row in rows] == [(method, s) for s in range(2) for method in METHODS]
    with (path / "ablate.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    table = dict(line.split(",") for line in (folder / "sss.csv").read_text().splitlines()[1:])
    accuracies = sorted(map(float, table.values()), reverse=True)
    for row in rows:
        assert row["accuracy"] == float(table[row["architecture"]]) and row["among"] == len(table)
        assert row["rank"] == accuracies.index(row["accuracy"]) + 1 and row["evaluations"] == 60
        assert row["regret"] == pytest.approx(accuracies[0] - row["accuracy"])
        best = max(sum(widths(line)) for line in journal(path, row["method"], row["seed"]))
        assert "accuracy" not in row["method"] or row["accuracy"] == 50 + best / 8
    assert (path / "ablate.png").stat().st_size > 10_000


def test_each_variant_searches_as_it_says(done):
    path, _ = done
    lines = {variant: journal(path, f"accuracy@{variant}" if variant else "accuracy") for variant in ("", *VARIANTS)}
    phases = {variant: [*dict.fromkeys(line.phase for line in some)] for variant, some in lines.items()}
    usual = ["multi-start 1", "multi-start 2", "multi-start 3", "joint 1", "joint 2"]
    assert phases[""] == phases["one-gene"] == phases["no-crossover"] == usual
    assert phases["one-start"] == ["multi-start 1", "joint 1", "joint 2"]
    assert [line.phase for line in lines["one-start"]].count("multi-start 1") == 30
    assert phases["random"] == phases["rea"] == phases["one-phase"] == ["multi-start 1"]
    origins = {variant: {line.origin for line in some} for variant, some in lines.items()}
    assert origins["random"] == {"sample"} and origins["rea"] == {"sample", "mutation"}
    assert "crossover" in origins[""] & origins["one-gene"] & origins["one-phase"]
    assert "crossover" not in origins["no-crossover"]
    for variant, few in {"rea": True, "one-gene": True, "one-phase": False, "": False}.items():
        before, changes = [], []
        for line in lines[variant]:
            if line.origin == "mutation":
                nearest = [sum(a != b for a, b in zip(widths(line), other, strict=True)) for other in before]
                changes.append(min(nearest))
            before.append(widths(line))
        assert (max(changes) <= 1) == few, variant


def test_the_way_ends_at_what_was_found(done, monkeypatch):
    _, rows = done
    drawn = []
    monkeypatch.setattr(ablating_space, "draw_regret", lambda curves, *rest: drawn.append(curves))
    run("run")
    for method in METHODS:
        curve = drawn[0][method]
        assert curve.shape == (2, 60) and list(curve[:, -1]) == [r["accuracy"] for r in rows if r["method"] == method]
    assert (np.diff(drawn[0]["accuracy@random"]) >= 0).all()


def test_what_is_done_is_only_read_and_more_may_join(done, folder, monkeypatch, capsys):
    path, rows = done
    before = {file: file.read_bytes() for file in path.rglob("journal.jsonl")}
    cut = path / "search" / "sed-1"
    (cut / "summary.json").unlink()
    (cut / "journal.jsonl").write_bytes(b"".join(before[cut / "journal.jsonl"].splitlines(keepends=True)[:20]))
    assert [row | {"seconds": 0} for row in run("run")] == [row | {"seconds": 0} for row in rows]
    told = {file: [line.genotype for line in read(file)] for file in before}
    more = run("run", methods=["accuracy", "parameters"], seeds=3)
    assert [row["seed"] for row in more] == [0, 0, 1, 1, 2, 2] and more[0] == rows[0]
    assert {file: [line.genotype for line in read(file)] for file in before} == told
    assert "| parameters | 3 " in (out := capsys.readouterr().out) and "±" in out
    with pytest.raises(ESFormerError, match="holds another run: search.total was 60.0, is 75.0; choose another"):
        run("run", "search.total=75")
    (folder / "part.csv").write_text("\n".join((folder / "sss.csv").read_text().splitlines()[:500]))
    with pytest.raises(ESFormerError, match=r"holds another run: space.table was sss.csv, is .*part.csv"):
        run("run", "--table", "part.csv")


def test_the_command_that_is_kept_repeats_a_search():
    config, arguments = ablate.parse([*SPACE, *SHORT, "ablate.methods=[sed@rea]", "seed=3", "ablate.seeds=1"])
    from esformer import open_space

    space = open_space("nats-sss", "sss.csv")
    settings_of = partial(ablating_space.settings_of, search=config.search, space=space)
    (entry,) = ablating_space.entries_of(config, arguments, settings_of)
    alone, _ = cli.parse_with("", entry.arguments, cli.SPACE, cli.of_space)
    assert to_yaml(alone) == to_yaml(entry.config) and entry.config.search.mutated_genes == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ablate.methods=[magic]"], "there is no method 'magic'; a method is decoupled, .*accuracy"),
        (["ablate.methods=[sed@magic]"], "there is no variant 'magic'; after @ there can be random, rea"),
        (["ablate.methods=[sed@]"], "there is no variant ''"),
        (["ablate.methods=[decoupled]"], "changes topology genes, and space nats-sss/cifar10 has size genes alone"),
        (["ablate.train=true"], "the networks of a table are trained already"),
        (
            ["--space", "darts", "space.table=null"],
            "and none of space darts are known",
        ),
        (["--table", "none.csv"], "none.csv: cannot be read"),
        (["budget.params=10"], "no genotype of space nats-sss/cifar10 fits"),
        (["seed=2147483648"], "seeds must stay below 2147483648"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(arguments, says, folder):
    with pytest.raises(ESFormerError, match=says):
        ablate.main([*SPACE, *SHORT, "ablate.methods=[sed]", "run.dir=no", *arguments])
    assert not (folder / "no").exists()


def test_a_budget_counts_in_the_ranks(folder):
    (row,) = run("cheap", "budget.params=60000", methods=["accuracy"], seeds=1)
    assert row["params"] <= 60000 and row["among"] < 3000
    assert json.loads(Path("cheap/search/accuracy-0/summary.json").read_text())["among"] == row["among"]
