"""Runs that are sent to Weights & Biases as they go, to a server on loopback that keeps them."""

import logging
import subprocess
import sys
import time

import pytest
import wandb
from linear import BATCH, At, fit
from wandb_runs import Runs, serving_runs

from callbacks.search import send_genotype
from callbacks.speed import Speed
from configs.compose import compose
from esformer.errors import STOPPED
from esformer.genotype import Genotype
from pipelines import search, train
from pipelines.runtime import tracking
from pipelines.runtime.loggers import finish
from pipelines.runtime.run_folder import RunFolder
from pipelines.runtime.workspace import COLUMNS


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A login at a server that keeps what it is told."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.chdir(tmp_path)  # where W&B's processes leave their logs
    runs = Runs()
    with serving_runs(runs) as (address, _):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        wandb.teardown()
        yield runs
        wandb.teardown()


def session(folder, *callbacks, code=0, settings=(), source=None):
    """A session of a run: a training of 30 steps."""
    config = compose("S0", True, [f"run.dir={folder}", "wandb.project=digits", *settings])
    run = RunFolder.of("train", config, []).open(config)
    with run:
        made = tracking.loggers(config, run)
        tracking.use_artifact(made, source)
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


def test_a_training_says_what_it_begins_from(tmp_path, server, caplog):
    searched = tmp_path / "searched"
    config = compose("S0", True, [f"run.dir={searched}", "wandb.project=digits", "wandb.checkpoints=true"])
    run = RunFolder.of("search", config, []).open(config)
    with run:
        made = tracking.loggers(config, run)
        Genotype.shipped("esformer_s0").save(run.genotype)
        send_genotype(made[0], run.genotype, {"sed": 1.0})
        run.checkpoints.mkdir()
        run.best.write_bytes(b"weights")
        tracking.send_checkpoints(made, {"best": run.best, "last": run.last})
        finish(made, 0)
    wandb.teardown()
    name = run.wandb_id.read_text()
    assert {said["artifactTypeName"] for said in server.made.values()} == {"genotype", "model"}
    caplog.set_level(logging.INFO, "esformer")
    for number, source in enumerate((run.genotype, run.best, f"wandb:me/digits/checkpoint-{name}:best")):
        session(tmp_path / f"trained-{number}", source=str(source))
    used = [other.used for other in server.runs.values()]
    assert used == [[], [f"genotype-{name}:v0"], *[[f"checkpoint-{name}:v0"]] * 2]
    assert not any("begins from" in line for line in said(caplog))
    session(tmp_path / "trained-of-nothing", source="wandb:me/digits/checkpoint-0:best")
    assert any(line.startswith("W&B cannot be told that this run begins from me/digits/") for line in said(caplog))


@pytest.mark.nightly
def test_search_training_and_fine_tuning_are_a_chain(tmp_path, server):
    searched, trained, tuned = (tmp_path / name for name in ("searched", "trained", "tuned"))
    few = ["search.total=60", "search.start_length=10", "search.phase_length=10", "search.seeds=1"]
    short = ["data.limit=128", "recipe.epochs=1", "recipe.batch_size=64", "recipe.warmup_epochs=0"]
    short += ["trainer.accelerator=cpu", "wandb.checkpoints=true"]
    search.main(["--quick", *few, f"run.dir={searched}"])
    train.main(["--quick", *short, f"genotype={searched}/genotype.yaml", f"run.dir={trained}"])
    train.main(["--quick", *short, "--from", f"{trained}/checkpoints/best.ckpt", f"run.dir={tuned}"])
    names = [(folder / "wandb_id").read_text() for folder in (searched, trained, tuned)]
    runs = [server.runs[name] for name in names]
    assert [run.used for run in runs] == [[], [f"genotype-{names[0]}:v0"], [f"checkpoint-{names[1]}:v0"]]
    shown = {column.removesuffix(".value").partition(":")[2] for column in COLUMNS if column.startswith("config:")}
    for run in runs:
        assert run.exit_code == 0 and shown <= {*run.config}
    assert len({run.config["params"]["value"] for run in runs[:2]}) == 1


def test_what_is_not_of_another_run_is_not_looked_for(tmp_path):
    Genotype.shipped("esformer_s0").save(tmp_path / "genotype.yaml")
    for source in ("esformer_s0", str(tmp_path / "genotype.yaml"), "/genotype.yaml"):
        assert tracking._artifact_of(source) is None
    for damaged in (b"\xff", b"0123456789", b""):
        (tmp_path / "wandb_id").write_bytes(damaged)
        assert tracking._artifact_of(str(tmp_path / "genotype.yaml")) is None
    (tmp_path / "wandb_id").write_text("0a1b2c3d")
    assert tracking._artifact_of(str(tmp_path / "genotype.yaml")) == "genotype-0a1b2c3d:latest"
    assert tracking._artifact_of(str(tmp_path / "checkpoints/best.ckpt")) == "checkpoint-0a1b2c3d:best"
    assert tracking._artifact_of(str(tmp_path / "checkpoints/other.ckpt")) is None
