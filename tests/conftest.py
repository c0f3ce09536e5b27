"""What the tests share."""

import gc
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from timm.layers import LayerScale2d
from torch import nn
from warm import Warm

from esformer.engine import processes
from esformer.space import SearchSpace

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items):
    """Files with slow tests first: at the end both processes have something small to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("nightly")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_configure(config):
    if config.pluginmanager.hasplugin("xdist"):
        import crashes

        config.pluginmanager.register(crashes)


@pytest.fixture(scope="session", autouse=True)
def _light_process():
    torch.set_num_threads(1)  # two threads on two busy cores wait for each other: 0.01 s becomes 2 s
    gc.freeze()  # torch's million objects make every full collection slow
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _process():
    """Pipelines that a test runs in this process leave signal handlers, a rank, a logger of their own and W&B's."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    rank, log = rank_zero_only.rank, logging.getLogger("esformer")
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    rank_zero_only.rank = rank
    log.propagate, log.handlers = True, []
    log.setLevel(logging.NOTSET)
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def draw():
    """Give a random genotype of a size."""

    def draw(size="S0", seed=0, extended=False):
        return SearchSpace.for_size(size, extended).sample(random.Random(seed))

    return draw


@pytest.fixture(scope="session")
def randomise():
    """Move everything that starts at 0, 1 or 1e-5 to where a mistake would show."""

    @torch.no_grad()
    def randomise(network):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    values.uniform_(0.5, 1.5)
                for values in (module.bias, module.running_mean):
                    values.uniform_(-0.3, 0.3)
            elif isinstance(module, LayerScale2d):
                module.gamma.uniform_(0.2, 0.8)
            elif hasattr(module, "attention_biases"):
                module.attention_biases.normal_()
        return network.eval()

    return randomise


@pytest.fixture(scope="session")
def fresh_process():
    """Run Python in a process of its own and give what it prints."""

    def run(*arguments, **env):
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | env
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture
def warm():
    """Start pipelines and scripts without waiting for their imports; what still runs at the end is killed."""
    warm = Warm()
    yield warm
    warm.end()


@pytest.fixture
def warm_workers(warm, monkeypatch):
    """Workers of executors are forked where Python would start anew."""
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=warm.popen, DEVNULL=None))
