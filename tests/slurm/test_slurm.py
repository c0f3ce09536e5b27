"""The project's own sbatch scripts on a real cluster: to the end, and through every interruption to the same end."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import torch

from esformer.benchmarks.esformers import read_trainings
from esformer.genotype import Genotype
from esformer.search.journal import read
from pipelines import correlate

pytestmark = pytest.mark.nightly

TINY = ["--quick", "wandb.mode=offline", "trainer.accelerator=cpu", "search.img_size=33", "search.total=24"]
TINY += [
    "search.start_length=4",
    "search.phase_length=4",
    "recipe.epochs=2",
    "recipe.batch_size=64",
    "data.limit=256",
    "data.workers=1",
]
EVALUATIONS = 24
SAME = ("params", "macs", "search_evaluations", "search_score", "top1", "top5", "ema_top1", "ema_top5")
URGENT = "sbatch --partition=urgent --nodes=2 --ntasks-per-node=2 --output=/dev/null --wrap 'sleep 1'"
REQUEUED = "is in the queue again and goes on from here"


@pytest.fixture(scope="module")
def calm(cluster, tmp_path_factory):
    """The folder of the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    log = cluster.submit("full", *TINY, f"run.dir={folder}").end()
    assert log.count("epoch 2 of 2: ") == 1  # one rank speaks
    assert "2 cpu devices x 32 x 1" in log  # and both work
    return folder


def result(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    return {name: summary[name] for name in SAME}


def weights(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_job_that_is_interrupted_in_every_way_ends_as_if_it_had_not_been(cluster, calm, tmp_path):
    run = tmp_path / "run"
    command = ["full", *TINY, f"run.dir={run}"]

    cluster.disturb("evaluation-8", "scancel $SLURM_JOB_ID")
    log = cluster.submit(*command).end(state="CANCELLED")
    assert "disturbed at" in log and REQUEUED not in log
    known = list(read(run / "journal.jsonl"))
    assert 0 < len(known) < EVALUATIONS

    cluster.disturb("evaluation-16", "scancel -s USR1 $SLURM_JOB_ID")  # as before the time limit
    cluster.disturb("train-0-2", URGENT)  # SIGTERM
    cluster.disturb("validation-0-2", "scancel -s USR1 $SLURM_JOB_ID")
    cluster.disturb("checkpoint-1", "kill -KILL $PPID")
    log = cluster.submit(*command).end(state="FAILED", restarts=3)
    assert re.findall(r"disturbed at (\S+)", log) == ["evaluation-16", "train-0-2", "validation-0-2", "checkpoint-1"]
    assert log.count(REQUEUED) == 3
    assert list(read(run / "journal.jsonl"))[: len(known)] == known
    assert not (run / "summary.json").exists()

    log = cluster.submit(*command, options="--nodes=1 --ntasks-per-node=2").end()
    assert "epoch 2 of 2: " in log and "epoch 1 of 2: " not in log

    assert Genotype.load(run / "genotype.yaml") == Genotype.load(calm / "genotype.yaml")
    assert result(run) == result(calm)
    ours, theirs = weights(run), weights(calm)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()
    assert (run / "metrics.csv").read_text() == (calm / "metrics.csv").read_text()

    sessions = sorted((run / "wandb").glob("offline-run-*"))
    assert len(sessions) == 6  # one each time, of the first rank
    assert {path.name.rpartition("-")[2] for path in sessions} == {(run / "wandb_id").read_text()}


def test_a_search_alone_and_a_training_alone(cluster, tmp_path):
    cluster.submit("search", *TINY, f"run.dir={tmp_path / 'search'}").end()
    genotype = tmp_path / "search" / "genotype.yaml"
    cluster.submit("train", *TINY, f"genotype={genotype}", f"run.dir={tmp_path / 'train'}").end()
    assert Genotype.load(tmp_path / "train" / "genotype.yaml") == Genotype.load(genotype)
    assert json.loads((tmp_path / "train" / "summary.json").read_text())["ema_top1"] > 0


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_a_correlation_goes_on_where_its_job_was_stopped(cluster, tmp_path):
    table = tmp_path / "table.csv"
    rows = [f"1111{''.join(widths)},9{number % 7},1\n" for number, widths in enumerate(product("123", "123", "12"))]
    table.write_text("arch,test_acc_mean,params\n" + "".join(rows))
    command = ["--benchmark", "channel-bench-resnet", "--table", str(table), "--proxies", "entropic_score"]
    job = cluster.submit("correlate", *command, "--out", str(tmp_path / "out"))
    while len(lines(tmp_path / "out" / "scores.csv")) < 4:
        assert job["JobState"] in ("PENDING", "CONFIGURING", "RUNNING"), job.log
    cluster.run("scancel", "-s", "USR1", job.number)
    log = job.end(restarts=1)
    assert REQUEUED in log and "18 architectures to score, 0 known" in log and "going on in" in log
    correlate.main([*command, "--out", str(tmp_path / "here")])
    ours, theirs = (
        sorted(line.split(",")[:3] for line in lines(tmp_path / out / "scores.csv")) for out in ("out", "here")
    )
    assert ours == theirs


def test_a_survey_goes_on_in_the_trainings_that_its_job_had_begun(cluster, tmp_path):
    run = tmp_path / "run"
    command = ["--genotypes", "esformer_s0,efficientformerv2_s0", "--seeds", "1", "data=digits", "data.limit=256"]
    command += ["recipe=quick", "recipe.epochs=2", "recipe.batch_size=16", "data.workers=1", f"run.dir={run}"]
    job = cluster.submit("survey", *command)
    while len(list(run.glob("networks/*/checkpoints/last.ckpt"))) < 2:  # one on each node
        assert job["JobState"] in ("PENDING", "CONFIGURING", "RUNNING"), job.log
    cluster.run("scancel", job.number)
    job.end(state="CANCELLED")
    known = lines(run / "trainings.csv")
    log = cluster.submit("survey", *command).end()
    assert log.count("top-1") + max(0, len(known) - 1) == 2
    table = read_trainings(run / "trainings.csv")
    assert len(table) == len({training.genotype for training in table}) == 2
    assert all("going on in" in file.read_text() for file in run.glob("networks/*.log"))


@pytest.mark.parametrize(
    ("name", "options", "settings", "sentence"),
    [
        ("search", "--nodes=2 --ntasks=3", [], "submit with --nodes=2 --ntasks-per-node=2 instead of --ntasks=3"),
        (
            "train",
            "--nodes=1 --ntasks-per-node=1",
            ["trainer.devices=2"],
            "SLURM started 1 process on one node, but trainer.devices=2 and trainer.num_nodes=1 ask for others:"
            " start with --nodes=1 --ntasks-per-node=2, or leave the two settings out",
        ),
    ],
)
def test_wrong_tasks(cluster, tmp_path, name, options, settings, sentence):
    job = cluster.submit(name, *TINY, *settings, f"run.dir={tmp_path / 'run'}", options=options)
    log = job.end(state="FAILED")
    assert job["ExitCode"] == "2:0"
    assert f"{sentence}\n" in log and "Traceback" not in log
    assert not (tmp_path / "run").exists()


def test_the_array_runs_each_size(cluster):
    job = cluster.submit("array", "--print-config", "budget.params=4e6", options="--nodes=1 --ntasks-per-node=1")
    tasks = [type(job)(cluster, f"{job.number}_{number}") for number in range(3)]
    logs = [task.end() for task in tasks]
    assert [re.search("^size: (.*)", log, re.M).group(1) for log in logs] == ["S0", "S1", "S2"]
    assert all("params: 4000000.0" in log for log in logs)
