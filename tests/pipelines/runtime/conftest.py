"""A server of Weights & Biases."""

import pytest
import wandb
from wandb_runs import Runs, serving_runs


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
