"""What Weights & Biases is told, read back from its offline files; and that its failures harm no training."""

import json
import logging
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import wandb
from linear import BATCH, At, fit
from wandb.util import get_core_path

from callbacks.history import History
from callbacks.speed import Speed
from configs.compose import compose
from configs.schema import ConfigError
from esformer.errors import STOPPED
from esformer.genotype import Genotype
from esformer.version import code_version
from pipelines import full
from pipelines.runtime import lineage, tracking
from pipelines.runtime.loggers import finish
from pipelines.runtime.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _no_login(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tracking, "HURRY", 20)  # a busy machine is no failure
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server_down(monkeypatch):
    """A login, and a server that nobody answers for."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr(tracking, "INIT_TIMEOUT", 0.5)
    wandb.teardown()


def parts(folder):
    """W&B's files of a run, a session each, in order."""
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))


def records(file, ended=True):
    """All records of a file, by their type; right after the end of a run the last ones can be missing."""
    for _ in range(50):
        # what `wandb leet inspect --json` starts after it has imported everything
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", file, file.parent]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found = {}
        for record in map(json.loads, done.stdout.splitlines()):
            found.setdefault(record["type"], []).append(record[record["type"]])
        if "exit" in found or not ended:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


def history(found):
    return [record["item"] for record in found.get("history", [])]


def config_of(found):
    config = dict(found["run"][0]["config"]["update"])
    for record in found.get("config", []):
        config |= record["update"]
    return config


def names_on_the_page(*proxies):
    """Every metric that docs/metrics.md names, and when alone it is logged."""
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \|.*\|(.*)\|$", page, re.MULTILINE)
    return {name.replace("PROXY", proxy): only.strip() for name, only in rows for proxy in proxies}


def start(folder, *settings):
    config = compose("S0", True, [f"run.dir={folder}", "wandb.mode=offline", *settings])
    run = RunFolder.of("full", config, []).open(config)
    return run, tracking.loggers(config, run)


def train(made, *more, folder=None):
    speed = Speed(BATCH, 2)
    return fit([speed, *([History(folder, speed)] if folder else []), *more], loggers=made)


def warnings(caplog):
    return [
        record.getMessage() for record in caplog.records if record.name == "esformer" and record.levelname != "INFO"
    ]


def service():
    """The processes of W&B's service that this one started."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.nightly
def test_an_offline_run_holds_every_metric_of_both_stages(tmp_path):
    folder = tmp_path / "run"
    settings = ["search.total=60", "search.start_length=10", "search.phase_length=10", "search.seeds=1"]
    settings += ["data.limit=128", "recipe.epochs=1", "recipe.batch_size=64", "recipe.warmup_epochs=0"]
    settings += ["trainer.accelerator=cpu", "trainer.log_every=1", "wandb.mode=offline", "wandb.checkpoints=true"]
    full.main(["--quick", *settings, f"run.dir={folder}"])
    (file,) = parts(folder)
    found = records(file)
    (run,) = found["run"]
    assert (run["run_id"], run["resume"]) == ((folder / "wandb_id").read_text(), True)
    assert (run["project"], run["run_group"], run["job_type"]) == ("esformer", "run", "full")
    assert sorted(run["tags"]) == ["S0", "digits"]
    assert found["exit"] == [{"exit_code": 0, **found["exit"][0]}]

    rows = history(found)
    logged = {name.partition(".")[0] for row in rows for name in row if not name.startswith("_")}
    named = names_on_the_page("entropic_score", "log_synflow")
    assert {name for name, only in named.items() if not only} <= logged <= set(named)
    assert {"search/trajectory.filenames", "search/genotype.filenames"} <= {name for row in rows for name in row}
    assert not any("val_ema" in name or name.startswith("lr-") for name in logged)
    steps = [row["trainer/global_step"] for row in rows if "train/loss" in row]
    assert steps == [0, 1] == [row["trainer/global_step"] for row in rows if "lr" in row]
    axes = {record.get("glob_name"): record.get("step_metric") for record in found["metric"]}
    assert (axes["*"], axes["search/*"]) == ("trainer/global_step", "search/evaluation")

    config = config_of(found)
    assert config["recipe"]["batch_size"] == 64
    assert config["data"]["limit"] == 128
    assert config["genotype"] == Genotype.load(folder / "genotype.yaml").to_dict()
    assert config["version"] == code_version()
    machine = {name for record in found["environment"] for name in record}
    assert {"host", "os", "python", "cpu", "memory", "program"} <= machine  # W&B's own
    assert config["command"].startswith("python -m pipelines.full --quick")
    sent = {record["type"]: set() for record in found["artifact"]}
    for record in found["artifact"]:
        sent[record["type"]] |= set(record["aliases"])
    assert sent == {"genotype": {"latest"}, "model": {"best", "last", "latest"}}


@pytest.mark.nightly
def test_a_run_that_goes_on_is_the_same_run(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "run"
    for code in (STOPPED, 0):
        wandb.teardown()  # another process
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(code))
        with caplog.at_level(logging.INFO, "esformer"):
            run, made = start(folder, "wandb.group=night")
        with run:
            train(made)
            tracking.log_genotype(made, Genotype.shipped("esformer_s0"), params=3)
            finish(made, code)
        time.sleep(1.1)  # W&B's folders are named after the second
    first, second = map(records, parts(folder))
    assert first["run"][0]["run_id"] == second["run"][0]["run_id"]
    assert first["run"][0]["run_group"] == "night"
    assert first["run"][0]["resume"]
    assert "preempting" in first
    assert "preempting" not in second
    assert [part["exit"][0].get("exit_code", 0) for part in (first, second)] == [STOPPED, 0]
    assert config_of(second)["genotype"] == Genotype.shipped("esformer_s0").to_dict()
    assert next(record["slurm"] for record in second["environment"])["restart_count"] == "0"
    assert f"send the run, all its sessions in order, with: wandb sync {folder}/wandb\n" in caplog.text


def test_other_ranks_have_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "is_main", lambda: False)
    run, made = start(tmp_path / "run")
    run.close()
    assert made == []


def test_a_server_that_does_not_answer_costs_a_line(tmp_path, caplog, server_down):
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING, "esformer"):
        run, made = start(folder, "wandb.mode=auto")
    with run:
        train(made)
        began = time.monotonic()
        finish(made, 0)
        assert time.monotonic() - began < 15
    (line,) = warnings(caplog)
    assert re.match(r"W&B cannot be reached \(.+\); this session is kept offline$", line)
    (file,) = parts(folder)
    assert [row["train/loss"] for row in history(records(file)) if "train/loss" in row]


@pytest.mark.nightly
def test_a_service_that_dies_is_started_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH", 0.1)
    folder = tmp_path / "run"
    run, made = start(folder)

    def kill(trainer):
        time.sleep(0.5)  # until what was said before is in the file
        (pid,) = service()
        os.kill(pid, signal.SIGKILL)

    with run, caplog.at_level(logging.WARNING, "esformer"):
        train(made, At(15, kill), folder=folder)
        finish(made, 0)
    (line,) = warnings(caplog)
    assert re.match(r"W&B stopped \(.+\); it was started again$", line)
    first, second = parts(folder)
    rows = [history(records(first, ended=False)), history(records(second))]
    steps = [[row["trainer/global_step"] for row in part if "train/loss" in row] for part in rows]
    assert steps[0] + steps[1] == list(range(1, 30, 2))
    assert len(steps[0]) == 7
    assert (folder / "metrics.csv").read_text().count("\n") == 4
    assert (folder / "steps.csv").read_text().count("\n") == 16


def test_without_w_and_b_the_training_goes_on(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "run"
    run, made = start(folder)
    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    monkeypatch.setattr(tracking.time, "sleep", lambda seconds: None)
    with run, caplog.at_level(logging.WARNING, "esformer"):
        train(made, At(15, lambda trainer: os.kill(service()[0], signal.SIGKILL)), folder=folder)
        tracking.log_genotype(made, Genotype.shipped("esformer_s0"))
        lineage.send_checkpoints(made, {"last": folder / "steps.csv"})
        finish(made, 1)
    (line,) = warnings(caplog)
    assert line.endswith("; this run goes on without, its metrics are in metrics.csv")
    assert (folder / "metrics.csv").read_text().count("\n") == 4


def test_what_cannot_be_logged_costs_the_entry_alone(tmp_path, caplog):
    folder = tmp_path / "run"
    run, made = start(folder)
    with run, caplog.at_level(logging.WARNING, "esformer"):
        for _ in range(2):
            made[0].experiment.log("no mapping")
        made[0].log_image("lost", [str(tmp_path / "nowhere.png")])
        made[0].log_metrics({"good": 1.0}, step=3)
        made[0].log_hyperparams({"good": True})
        finish(made, 0)
    lines = warnings(caplog)
    assert ["W&B could not take an entry (" in line for line in lines] == [True, True]
    found = records(*parts(folder))
    assert history(found)[0]["good"] == 1
    assert config_of(found)["good"] is True


def test_w_and_b_that_cannot_start_is_done_without(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    run, made = start(tmp_path / "run")
    run.close()
    assert made == []
    assert warnings(caplog) == ["W&B cannot start (division by zero); this session goes on without it"]


def test_the_end_waits_for_nothing_that_does_not_come(tmp_path, caplog, monkeypatch):
    run, made = start(tmp_path / "run")
    stuck, really_finish = threading.Event(), made[0]._experiment.finish
    monkeypatch.setattr(made[0]._experiment, "finish", lambda **_: stuck.wait(30))
    monkeypatch.setattr(tracking, "HURRY", 0.2)
    began = time.monotonic()
    with run, caplog.at_level(logging.WARNING, "esformer"):
        finish(made, STOPPED)
    assert time.monotonic() - began < 5
    stuck.set()
    really_finish()  # else W&B goes on with this run where another test begins one
    assert f"everything; send it with: wandb sync --include-online {parts(tmp_path / 'run')[0].parent}" in caplog.text


def test_online_without_a_login_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="wandb.mode=online needs a login; type `wandb login`"):
        start(tmp_path / "run", "wandb.mode=online")
