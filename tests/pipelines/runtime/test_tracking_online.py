"""Runs that are sent to Weights & Biases as they go, to a server on loopback that keeps them."""

import logging
import subprocess
import sys
import time

import pytest
import wandb
from linear import BATCH, At, fit

from callbacks.speed import Speed
from configs.compose import compose
from esformer.errors import STOPPED
from esformer.genotype import Genotype
from pipelines import dashboard
from pipelines.runtime import lineage, tracking
from pipelines.runtime.loggers import finish
from pipelines.runtime.run_folder import RunFolder
from pipelines.runtime.workspace import COLUMNS


def session(folder, *callbacks, code=0, settings=(), source=None):
    """A session of a run: a training of 30 steps."""
    config = compose("S0", True, [f"run.dir={folder}", "wandb.project=digits", *settings])
    run = RunFolder.of("train", config, []).open(config)
    with run:
        made = tracking.loggers(config, run)
        lineage.use_artifact(made, source)
        fit([Speed(BATCH, 2), *callbacks], loggers=made)
        tracking.log_genotype(made, Genotype.shipped("esformer_s0"), params=3)
        finish(made, code)
    wandb.teardown()  # another process goes on


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "esformer"]


def type_in(command, folder):
    """Run what begins with `wandb`, which need not be on the path."""
    words = [sys.executable, "-m", *command.split()]
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=60)


def losses(run):
    """The steps whose loss arrived."""
    return [row["trainer/global_step"] for row in run.history if "train/loss" in row]


def test_a_run_arrives_and_goes_on_as_the_same_run(tmp_path, server, caplog):
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING, "esformer"):
        session(folder, settings=["wandb.group=night"], code=STOPPED)
        (name,) = server.runs
        run = server.runs[name]
        assert name == (folder / "wandb_id").read_text()
        assert (run.exit_code, run.preempting) == (STOPPED, True)
        first = losses(run)
        session(folder, settings=["wandb.group=night"])
    assert [*server.runs] == [name] and not said(caplog)
    assert (run.about["groupName"], run.about["jobType"], run.about["project"]) == ("night", "train", "digits")
    assert sorted(run.about["tags"]) == ["S0", "digits"]
    assert run.exit_code == 0
    assert losses(run) == first * 2 == [*range(1, 30, 2)] * 2
    assert run.config["genotype"]["value"] == Genotype.shipped("esformer_s0").to_dict()


def test_a_server_that_fails_for_a_while_has_everything_in_the_end(tmp_path, server, caplog):
    def fail(trainer):
        server.down = True

    def recover(trainer):
        time.sleep(1)  # until something was refused
        server.down = False

    with caplog.at_level(logging.WARNING, "esformer"):
        session(tmp_path / "run", At(5, fail), At(20, recover))
    (run,) = server.runs.values()
    assert losses(run) == [*range(1, 30, 2)]
    assert (run.exit_code, said(caplog)) == (0, [])


def test_what_a_server_never_took_can_be_sent_later(tmp_path, server, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT", 2.0)

    def fail(trainer):
        server.down = True

    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "esformer"):
        session(tmp_path / "run", At(5, fail))
    assert time.monotonic() - began < 30
    (line,) = said(caplog)
    start = "W&B did not take everything; send it with: "
    assert line.startswith(start)
    server.down = False
    type_in(line.removeprefix(start), tmp_path)
    (run,) = server.runs.values()
    assert losses(run) == [*range(1, 30, 2)]
    assert run.exit_code == 0


@pytest.mark.nightly
def test_sessions_that_were_offline_can_be_sent_together(tmp_path, server, caplog):
    folder = tmp_path / "run"
    with caplog.at_level(logging.INFO, "esformer"):
        session(folder, settings=["wandb.mode=offline"], code=STOPPED)
        time.sleep(1.1)  # W&B's folders are named after the second
        session(folder, settings=["wandb.mode=offline"])
    assert not server.runs
    start = "W&B is offline; send the run, all its sessions in order, with: "
    (command,) = {line.removeprefix(start) for line in said(caplog) if line.startswith(start)}
    type_in(command, tmp_path)
    (run,) = server.runs.values()
    assert losses(run) == [*range(1, 30, 2)] * 2
    assert run.exit_code == 0
    dashboard.main(["--project", "digits"])
    assert len(server.views.kept) == 2  # workspace and report, of the project that the run is in
    drawn = " ".join(view["spec"] for view in server.views.kept.values())
    assert run.about["project"] == "digits" and all(column in drawn for column in COLUMNS)
