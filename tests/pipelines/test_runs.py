"""`pipelines.runs`: every run that is there, in which state, how far, what it reached, and how it goes on."""

import fcntl
import os
import random
import time
from shutil import copytree

import pytest

from configs.compose import compose, to_yaml
from esformer.benchmarks import get
from esformer.errors import ESFormerError
from pipelines import runs, search

TABLE = ["--space", "nats-sss", "--table", "sss.csv", "search=naswot", "search.start_proxy=accuracy"]
TABLE += ["search.start_length=40", "search.total=40", "search.start_population=10", "wandb.mode=disabled"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Holds a finished search, one that was killed, a training that was killed, and what is none."""
    folder = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        benchmark, rng = get("nats-sss"), random.Random(0)
        rows = {benchmark.spell([rng.choice(gene) for gene in benchmark.genes]): rng.uniform(10, 90) for _ in range(99)}
        (folder / "sss.csv").write_text("\n".join(["arch,cifar10_test", *(f"{a},{b}" for a, b in rows.items())]))
        search.main([*TABLE, "run.dir=runs/done"])
        search.main([*TABLE, "run.dir=runs/deeper/killed"])
        killed = folder / "runs/deeper/killed"
        (killed / "summary.json").unlink()
        lines = (killed / "journal.jsonl").read_bytes().splitlines(keepends=True)
        (killed / "journal.jsonl").write_bytes(b"".join(lines[:13]) + lines[13][:30])
        trained = folder / "runs/trained"
        (trained / "networks/inner").mkdir(parents=True)
        (trained / "config.yaml").write_text(f"# python -m pipelines.train\n{to_yaml(compose('S0'))}")
        (trained / "networks/inner/config.yaml").write_text("# python -m pipelines.train\n")  # a part of that run
        (trained / "metrics.csv").write_text("epoch,step,val/top1,val/ema_top1\n0,9,0.25,0.1\n1,18,0.5,0.125\n")
        (folder / "runs/survey").mkdir()
        (folder / "runs/survey/config.yaml").write_text("# python -m pipelines.survey\nx: 1\n")
        (folder / "runs/notes").mkdir()
        (folder / "runs/notes/config.yaml").write_text("mine: 1\n")
        yield folder


@pytest.fixture
def listed(folder):
    return {row["run"]: row for row in runs.main([])}


def test_every_run_is_listed_and_nothing_else(listed):
    assert {*listed} == {"runs/done", "runs/deeper/killed", "runs/trained", "runs/survey"}
    assert {row["command"] for row in listed.values()} == {"search", "train", "survey"}


def test_a_finished_run_shows_what_it_reached(listed, folder):
    done = listed["runs/done"]
    assert (done["state"], done["progress"]) == ("finished", "")
    assert done["score"].startswith("accuracy ") and done["top-1"].endswith("%")
    assert float(done["top-1"][:-1]) == pytest.approx(float(done["score"].split()[1]), abs=0.01)


def test_a_run_that_was_killed_says_how_far_it_came_and_how_it_goes_on(folder, capsys):
    rows = {row["run"]: row for row in runs.main(["runs"])}
    killed = rows["runs/deeper/killed"]
    assert (killed["state"], killed["progress"]) == ("stopped", "12 of 40 evaluations")
    assert killed["score"].startswith("accuracy ") and killed["top-1"] == ""
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "goes on with" in line]
    command = line.partition("goes on with: ")[2]
    assert line.startswith("runs/deeper/killed ") and command == killed["go_on"]
    assert command.startswith("python -m pipelines.search --space nats-sss") and command.endswith("killed")
    trained = rows["runs/trained"]
    assert (trained["progress"], trained["top-1"]) == ("epoch 2 of 300", "50.00% (averaged 12.50%)")


def test_the_one_that_changed_last_comes_first_and_one_at_work_is_running(folder):
    now = time.time()
    for age, name in enumerate(("trained", "survey", "deeper/killed", "done")):
        for file in (folder / "runs" / name).iterdir():
            os.utime(file, (now - 100 * age, now - 100 * age))
    with (folder / "runs/survey/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(folder / "runs/survey/.lock", (now - 100, now - 100))
        rows = runs.main(["runs", "runs/deeper"])
    (folder / "runs/survey/.lock").unlink()
    assert [row["run"] for row in rows] == ["runs/trained", "runs/survey", "runs/deeper/killed", "runs/done"]
    assert [row["state"] for row in rows] == ["stopped", "running", "stopped", "finished"]
    assert 295 < rows[-1]["age"] < 330


@pytest.mark.parametrize(
    ("config", "journal", "says"),
    [
        ("train\n{", "nothing\n", "config.yaml"),
        ("full\n- 1\n", "", "holds no settings"),
        ("search\nsize: S0\n", '{"schedule": {}}\n', "journal.jsonl"),
        ("search\nsize: S0\n", "\0\1", "journal.jsonl"),
        ("", "", None),
    ],
)
def test_damage_is_told_and_does_not_hide_the_others(folder, capsys, config, journal, says):
    bad = folder / "runs/bad\nname"
    bad.mkdir()
    try:
        (bad / "config.yaml").write_text(f"# python -m pipelines.{config}")
        (bad / "journal.jsonl").write_text(journal)
        rows = {row["run"]: row for row in runs.main([])}
        assert len(rows) == 5 and rows["runs/done"]["state"] == "finished"
        said = capsys.readouterr().out.splitlines()
        assert any("is damaged: " in line and says in line for line in said) == (says is not None)
        assert sum("runs/done" in line for line in said) == 1
    finally:
        for file in bad.iterdir():
            file.unlink()
        bad.rmdir()


def test_a_run_that_was_copied_goes_on_where_it_lies(folder, tmp_path):
    copytree(folder / "runs/deeper/killed", tmp_path / "my copy")
    (row,) = runs.main([str(tmp_path)])
    assert row["go_on"].endswith(f"'run.dir={tmp_path}/my copy'") and row["go_on"].count("run.dir") == 1


def test_no_runs_and_no_folder(tmp_path, capsys):
    assert runs.main([str(tmp_path)]) == [] and f"no runs in {tmp_path}" in capsys.readouterr().out
    with pytest.raises(ESFormerError, match="nothing is not there; give a folder with runs"):
        runs.main(["nothing"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ESFormerError, match="file is a file; give a folder with runs"):
        runs.main([str(tmp_path / "file")])
