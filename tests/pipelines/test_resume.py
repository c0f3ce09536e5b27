"""A run that is killed with SIGKILL, in each stage, ends as the undisturbed run does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esformer.search.journal import read

TINY = [
    "--quick",
    "wandb.mode=disabled",
    "trainer.accelerator=cpu",
    "search.total=60",
    "search.start_length=10",
    "search.phase_length=10",
    "recipe.epochs=4",
    "recipe.batch_size=256",
]


def start(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pipelines.full", *TINY, f"run.dir={folder}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def finish(process: "subprocess.Popen[str]") -> str:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out


def kill_when(process: "subprocess.Popen[str]", reached) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_in_each_stage(tmp_path):
    finish(start(tmp_path / "calm"))
    folder = tmp_path / "killed"
    journal, metrics = folder / "journal.jsonl", folder / "metrics.csv"

    kill_when(start(folder), lambda: journal.exists() and journal.read_bytes().count(b"\n") > 25)
    kill_when(start(folder), lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    known = list(read(journal))
    out = finish(start(folder))

    assert "going on in" in out
    assert list(read(journal)) == known  # the search was not done again
    calm = json.loads((tmp_path / "calm" / "summary.json").read_text())
    killed = json.loads((folder / "summary.json").read_text())
    for name in ("params", "macs", "search_evaluations", "search_score", "top1", "top5", "ema_top1", "ema_top5"):
        assert killed[name] == calm[name], name
    assert metrics.read_text() == (tmp_path / "calm" / "metrics.csv").read_text()

    assert "is finished" in finish(start(folder))  # and a further start changes nothing
