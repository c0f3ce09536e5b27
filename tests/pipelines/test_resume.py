"""A run that is killed with SIGKILL, in each stage, ends as the undisturbed run does."""

import json
import time

import pytest

from esformer.search.journal import read

TINY = [
    "--quick",
    "wandb.mode=disabled",
    "trainer.accelerator=cpu",
    "search.total=60",
    "search.start_length=10",
    "search.phase_length=10",
    "data.limit=512",
    "recipe.epochs=3",
    "recipe.batch_size=128",
]


def kill_when(process, reached):
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.output
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()


@pytest.mark.nightly
def test_killed_in_each_stage(warm, tmp_path):
    def start(name):
        return warm.start(["pipelines.full", *TINY, f"run.dir={tmp_path / name}"])

    start("calm").finish()
    folder = tmp_path / "killed"
    journal, metrics = folder / "journal.jsonl", folder / "metrics.csv"

    kill_when(start("killed"), lambda: journal.exists() and journal.read_bytes().count(b"\n") > 25)
    kill_when(start("killed"), lambda: metrics.exists() and metrics.read_text().count("\n") > 1)
    known = list(read(journal))
    out = start("killed").finish()

    assert "going on in" in out
    assert list(read(journal)) == known  # the search was not done again
    calm = json.loads((tmp_path / "calm" / "summary.json").read_text())
    killed = json.loads((folder / "summary.json").read_text())
    for name in ("params", "macs", "search_evaluations", "search_score", "top1", "top5", "ema_top1", "ema_top5"):
        assert killed[name] == calm[name], name
    assert metrics.read_text() == (tmp_path / "calm" / "metrics.csv").read_text()

    assert "is finished" in start("killed").finish()  # and a further start changes nothing
