"""`pipelines.search search.family=... --points ...` as a user types it; the guide's score costs nothing."""

import csv
import json

import pytest
from PIL import Image

from esformer.errors import ESFormerError
from esformer.genotype import Genotype, parse
from esformer.model.cost import cost
from esformer.search import scorer
from pipelines import search
from pipelines.runtime import searching

COMMAND = [
    *("--quick", "wandb.mode=disabled", "data.img_size=64", "search.total=60", "search.start_length=15"),
    *("search.phase_length=15", "search.start_proxy=parameters", "search.joint_proxy=parameters", "search.family=macs"),
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scorer, "score", lambda proxy, genotype, *_, **__: float(cost(genotype).params))

    def run(*more):
        return search.main([*COMMAND, "run.dir=r", *more])

    return run


def rows(folder):
    return list(csv.DictReader((folder / "front.csv").open()))


def macs(genotype):
    return cost(genotype, 64, 10).macs


@pytest.mark.nightly
def test_named_points_get_the_best_within_them_and_later_ones_without_a_search(run, tmp_path, monkeypatch):
    found = run("--points", "1.5e7,2.5e7")
    front = rows(tmp_path / "r")
    journal = (tmp_path / "r" / "journal.jsonl").read_bytes()
    assert found["search_evaluations"] == 60 and Genotype.load("r/genotype.yaml") == parse(front[-1]["genotype"])
    monkeypatch.setattr(searching, "search", lambda *_: pytest.fail("it searched again"))
    assert run("--points", "2e7,1e9") == found
    assert (tmp_path / "r" / "journal.jsonl").read_bytes() == journal and rows(tmp_path / "r") == front
    files = {"15M": 1.5e7, "25M": 2.5e7, "20M": 2e7, "1000M": 1e9}
    assert {file.stem for file in (tmp_path / "r" / "family").iterdir()} == set(files)
    for name, point in files.items():
        genotype = Genotype.load(f"r/family/{name}.yaml")
        within = [row for row in front if float(row["macs"]) <= point]
        assert genotype == parse(within[-1]["genotype"]) and macs(genotype) == float(within[-1]["macs"])
    with Image.open("r/front.png") as picture:
        assert min(picture.size) > 400
    again = search.main(["--replay", "r/journal.jsonl", "--points", "2e7", "run.dir=again"])
    assert again["search_score"] == found["search_score"] and rows(tmp_path / "again") == front
    assert (tmp_path / "again/family/20M.yaml").read_text() == (tmp_path / "r/family/20M.yaml").read_text()


def test_points_that_cannot_be_are_refused_in_a_sentence(run, tmp_path, capsys):
    with pytest.raises(ESFormerError, match=r"--points asks for 1,000 macs; the cheapest genotype of space S0 has \d"):
        run("--points", "1e3,2e7")
    assert not (tmp_path / "r" / "journal.jsonl").exists()  # before the search
    with pytest.raises(ESFormerError, match="set search.family to macs, params or latency_ms too"):
        run("--points", "2e7", "search.family=null")
    for text in ("2e7;3e7", "-1", "inf", ""):
        with pytest.raises(SystemExit):
            run("--points", text)
        assert "must be costs above 0, such as 2e8,3e8,4e8" in capsys.readouterr().err


@pytest.mark.nightly
def test_killed_before_its_files_are_written_it_leaves_them_later(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("callbacks.search.draw_family", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run("--points", "2e7")
    assert not (tmp_path / "r" / "genotype.yaml").exists()
    run("--points", "2e7")
    assert Genotype.load("r/family/20M.yaml") and json.loads((tmp_path / "r" / "summary.json").read_text())
