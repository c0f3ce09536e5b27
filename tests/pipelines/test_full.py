"""The README's first command, as it stands there, on real images."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from esformer.genotype import Genotype
from esformer.model.cost import cost
from esformer.search.journal import read

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_the_quick_command_of_the_readme(tmp_path):
    line = next(
        line for line in (ROOT / "README.md").read_text().splitlines() if "pipelines.full --size S0 --quick" in line
    )
    command = shlex.split(line.partition("&&")[2].strip(" `"))
    assert command[0] == "python"
    command = [sys.executable, *command[1:], f"run.dir={tmp_path / 'run'}", "wandb.mode=offline"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert min(summary["top1"], summary["ema_top1"]) > 0.9
    genotype = Genotype.load(run / "genotype.yaml")
    price = cost(genotype, 32, 10)
    assert (summary["params"], summary["macs"]) == (price.params, price.macs)
    assert summary["params"] <= 3.5e6
    assert len(list(read(run / "journal.jsonl"))) == summary["search_evaluations"]
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert "Traceback" not in done.stdout + done.stderr
    assert "Warning" not in done.stderr
