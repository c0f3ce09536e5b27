"""Survey: every training once, whatever is killed, and a table that correlate reads."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from configs.schema import ConfigError
from esformer.benchmarks.draws import Draw, shipped_reference
from esformer.benchmarks.esformers import ESFormers, read_trainings
from esformer.errors import ESFormerError
from esformer.genotype import notation
from pipelines import survey
from pipelines.runtime import cli, surveying

TINY = ["data=digits", "data.limit=64", "recipe=quick", "recipe.epochs=2", "recipe.batch_size=16", "trainer.threads=1"]


def wait_for(condition, process):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.output
        assert time.monotonic() < deadline
        time.sleep(0.05)


def reached(table):
    return {(row.genotype, row.seed): (row.top1, row.ema_top1) for row in table}


@pytest.mark.nightly
def test_killed_in_a_training_it_goes_on_there_and_trains_nothing_twice(warm, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = ["pipelines.survey", *TINY, "--networks", "2", "--seeds", "1"]
    warm.start([*command, "--workers", "2", f"run.dir={whole}"]).finish(timeout=400)
    table = read_trainings(whole / "trainings.csv")
    assert (whole / "trainings.png").stat().st_size > 10_000
    assert sorted((row.drawn, row.seed) for row in table) == [("at cost", 0), ("reference", 0)]
    assert all(len(row.top1) == len(row.ema_top1) == 2 for row in table)
    assert not list(whole.glob("networks/*/checkpoints"))

    second = warm.start([*command, f"run.dir={cut}"])
    wait_for(lambda: list(cut.glob("networks/*/checkpoints/last.ckpt")), second)
    (child,) = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    wait_gone = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < wait_gone:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    warm.start([*command, f"run.dir={cut}"]).finish(timeout=400)
    assert "going on" in next(cut.glob("networks/0000*-0.log")).read_text()
    assert reached(read_trainings(cut / "trainings.csv")) == reached(table)

    before = (cut / "trainings.csv").read_bytes()
    assert "top1 highest" in warm.start([*command, f"run.dir={cut}"]).finish()
    assert (cut / "trainings.csv").read_bytes() == before


@pytest.mark.nightly
def test_ranks_share_the_trainings(warm, tmp_path):
    arguments = ["--genotypes", "esformer_s0,efficientformerv2_s0", "--seeds", "1", *TINY]
    alone = survey.main([*arguments, f"run.dir={tmp_path / 'alone'}"])
    ranks = warm.start_ranks(2, ["pipelines.survey", *arguments, f"run.dir={tmp_path / 'ranks'}"])
    first, other = (rank.finish(timeout=500) for rank in ranks)
    assert first.count("top-1") == 2 and "top-1" not in other
    table = read_trainings(tmp_path / "ranks" / "trainings.csv")
    assert len(table) == 2
    assert reached(table) == reached(read_trainings(Path(alone["table"])))


def test_a_training_that_fails_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ESFormerError, match=r"the training in .*0000-.*-0 failed \(exit code 1\): it said nothing"):
        survey.main(["--networks", "1", *TINY, f"run.dir={tmp_path / 'run'}"])


def test_named_genotypes_are_trained_with_every_seed(tmp_path):
    file = tmp_path / "mine.yaml"
    shipped_reference("S0").save(file)
    config, arguments = cli.parse_with("", ["--genotypes", f"{file},esformer_s0", "--seeds", "2"], survey.FLAGS)
    done = {(notation(shipped_reference("S0")), 1)}
    jobs = list(surveying.jobs(config, arguments, tmp_path, done))
    assert [(job.origin, job.seed) for job in jobs] == [("mine", 0), ("esformer_s0", 0), ("esformer_s0", 1)]
    assert len({job.folder for job in jobs}) == 3


def test_what_is_known_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(surveying, "REPEATED", 10**9)
    monkeypatch.setattr("pipelines.runtime.trainings.Trainings.start", lambda *_: pytest.fail("it trains"))
    command = ["--networks", "1", "--seeds", "3", *TINY, f"run.dir={tmp_path / 'run'}"]
    summary = survey.main([*command, "--known", str(ESFormers.shipped)])
    assert read_trainings(Path(summary["table"])) == read_trainings(ESFormers.shipped)
    with pytest.raises(ESFormerError, match=r"nowhere.csv: cannot be read"):
        survey.main([*command[:-1], f"run.dir={tmp_path / 'other'}", "--known", "nowhere.csv"])


def test_draws_are_kept(tmp_path, monkeypatch):
    made = []

    class Draws:
        def __init__(self, *_):
            pass

        def __getitem__(self, index):
            made.append(index)
            return Draw(f"number {index}", shipped_reference("S0"))

    monkeypatch.setattr("pipelines.runtime.surveying.Draws", Draws)
    config, arguments = cli.parse_with("", ["--networks", "2", *TINY], survey.FLAGS)
    once = list(surveying.drawn(config, arguments, tmp_path))
    arguments.networks = 3
    again = list(surveying.drawn(config, arguments, tmp_path))
    assert again[:2] == once
    assert made == [0, 1, 2]
    arguments.seeds = 2  # of every eighth genotype
    jobs = surveying.jobs(config, arguments, tmp_path, set())
    assert [(job.origin[-1], job.seed) for job in jobs] == [("0", 0), ("0", 1), ("1", 0), ("2", 0)]


@pytest.mark.parametrize("damage", ["one", "one,two", "one,two,three"])
def test_damaged_draws_are_refused(tmp_path, damage):
    (tmp_path / "draws.csv").write_text(f"reference,{notation(shipped_reference('S0'))}\n{damage}\n")
    config, arguments = cli.parse_with("", TINY, survey.FLAGS)
    with pytest.raises(ESFormerError, match=r"draws.csv: line 2 holds no draw .* remove the file"):
        list(surveying.drawn(config, arguments, tmp_path))


def test_devices_are_dealt_out_by_the_survey_alone():
    with pytest.raises(
        ConfigError, match="ask for 2; leave them out, and give --workers, or start it with srun or torchrun"
    ):
        survey.main([*TINY, "trainer.accelerator=cpu", "trainer.devices=2"])


@pytest.mark.parametrize("flag", ["--networks", "--seeds", "--workers"])
def test_numbers_out_of_range_are_refused(flag):
    with pytest.raises(ConfigError, match=f"{flag} is 0; it must be from 1 to"):
        survey.main([flag, "0", *TINY])


def test_a_genotype_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ESFormerError, match="nobody"):
        survey.main(["--genotypes", "nobody.yaml", *TINY, f"run.dir={tmp_path / 'run'}"])
