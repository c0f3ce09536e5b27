"""Processes that die, hang or are stopped: whoever needs them ends soon, with the reason and the right exit code."""

import os
import signal
import time
from pathlib import Path

import pytest

from esformer.errors import STOPPED, USER_ERROR

IMPATIENT = """
import os, sys
from pipelines import cli, train, evaluate, search
from pipelines.runtime import watchdog

watchdog.TICK, watchdog.BEAT, watchdog.SILENCE, watchdog.PATIENCE, watchdog.LINGER = 0.2, 0.3, 4, 4, 3
"""
FAILING = """
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from esformer.errors import ESFormerError

def fails(kind, name, rank, times):
    method, left = getattr(kind, name), iter(range(times))
    def failing(*arguments, **settings):
        if rank_zero_only.rank == rank and next(left, None) is None:
            raise {error}("rank {rank} has had enough")
        return method(*arguments, **settings)
    setattr(kind, name, failing)
"""
GONE = "another process of this job is gone; see what it said. The same command goes on"


def wait_for(reached, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.output
        assert time.monotonic() < deadline, process.output
        time.sleep(0.02)


def children(process):
    """The processes that load its images, as long as they are there."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def last_line(process):
    return process.output.rstrip().splitlines()[-1]


@pytest.fixture
def script(tmp_path):
    """A pipeline that loses its patience within seconds."""

    def write(run="cli.run(train.main)", before=""):
        (tmp_path / "pipeline.py").write_text(f"{IMPATIENT}\n{before}\n{run}\n")
        return tmp_path / "pipeline.py"

    return write


@pytest.fixture
def training(digits_in_folders, smallest, tmp_path):
    """The arguments of a training that goes on until something happens to it."""
    data = ["data=folder", f"data.root={digits_in_folders(200, 40)}", "data.img_size=32"]
    recipe = ["recipe=quick", "recipe.epochs=500", "recipe.batch_size=32", f"genotype={smallest}"]
    return [*data, *recipe, "trainer.accelerator=cpu", "wandb.mode=disabled", f"run.dir={tmp_path / 'run'}"]


def trains(process):
    wait_for(lambda: "epoch 1 of 500: " in process.output, process)


def test_a_stopped_process_that_loads_images_ends_the_training(warm, script, training, tmp_path):
    command = [script(), *training, "data.workers=2", "data.timeout=3"]
    process = warm.start(command)
    trains(process)
    stopped = children(process)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert process.wait(30) == USER_ERROR, process.output
    assert time.monotonic() - began < 12
    waited = f"error: no images came from {tmp_path / 'images'} for data.timeout=3 seconds: process "
    assert last_line(process).startswith(waited)
    assert last_line(process).endswith("which loads them, has been stopped (SIGSTOP)")
    assert "Traceback" not in process.output
    assert not any(Path(f"/proc/{pid}").exists() for pid in stopped)


def test_a_killed_training_takes_its_stopped_processes_along_and_its_folder_is_free(warm, script, training, tmp_path):
    command = [script(), *training, "data.workers=2"]
    process = warm.start(command)
    trains(process)
    for pid in (stopped := children(process)):
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait(10)
    deadline = time.monotonic() + 2
    while any(Path(f"/proc/{pid}").exists() for pid in stopped):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_number_of_sigterms_to_all_processes_is_a_want_of_memory(warm, script, training, tmp_path, workers):
    process = warm.start([script(), *training, f"data.workers={workers}"])
    trains(process)
    for _ in range(4):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.02)
    assert process.wait(30) == STOPPED, process.output
    assert "error" not in process.output and last_line(process) == "stopped; the same command goes on from here"
    assert "asked to stop in epoch" in process.output


def test_a_process_that_loads_images_and_dies_of_something_else_is_no_want_of_memory(warm, script, training):
    process = warm.start([script(), *training, "data.workers=2"])
    trains(process)
    os.kill(children(process)[0], signal.SIGABRT)
    assert process.wait(30) == USER_ERROR, process.output
    assert last_line(process) == (
        "error: a process that loads images was killed by signal: Aborted; see what it said. The same command goes on"
    )
    assert "memory" not in process.output


def sigstop_one(ranks):
    ranks[1].send_signal(signal.SIGSTOP)
    return time.monotonic()


SILENT = "rank 1 has given no sign of life for 4 seconds: it is stopped, or its machine hangs. The same command goes on"


def test_a_stopped_rank_ends_the_others(warm, script, training):
    ranks = warm.start_ranks(2, [script(), *training, "data.workers=0"])
    trains(ranks[0])
    began = sigstop_one(ranks)
    assert ranks[0].wait(20) == USER_ERROR, ranks[0].output
    assert time.monotonic() - began < 12
    assert last_line(ranks[0]) == f"error: {SILENT}"


def test_a_stopped_first_rank_ends_the_others(warm, script, training):
    ranks = warm.start_ranks(2, [script(), *training, "data.workers=0"])
    trains(ranks[0])
    ranks[0].send_signal(signal.SIGSTOP)
    assert ranks[1].wait(20) == USER_ERROR, ranks[1].output
    assert last_line(ranks[1]) == f"error: {SILENT}".replace("rank 1", "rank 0")


def test_a_signal_ends_a_rank_that_waits_for_a_stopped_one(warm, script, training):
    """The watchdog's silence is long here: it is the signal that ends it."""
    patient = script(before="watchdog.SILENCE = 600")
    ranks = warm.start_ranks(2, [patient, *training, "data.workers=0"])
    trains(ranks[0])
    sigstop_one(ranks)
    time.sleep(0.5)
    ranks[0].terminate()
    assert ranks[0].wait(20) == STOPPED, ranks[0].output
    assert last_line(ranks[0]) == "stopped; the same command goes on from here"


def test_a_job_that_is_suspended_as_a_whole_goes_on(warm, script, training):
    ranks = warm.start_ranks(2, [script(), *training, "data.workers=1", "data.timeout=3"])
    trains(ranks[0])
    for number, seconds in ((signal.SIGSTOP, 7), (signal.SIGCONT, 6)):
        for rank in ranks:
            os.killpg(rank.pid, number)
        time.sleep(seconds)
    before = ranks[0].output.count("epoch ")
    wait_for(lambda: ranks[0].output.count("epoch ") > before, ranks[0])


FAILURES = {
    "training": "fails(ESFormerModule, 'training_step', {rank}, 9)",
    "validation": "fails(ESFormerModule, 'validation_step', {rank}, 3)",
}


@pytest.mark.parametrize("starter", ["torchrun", "lightning"])
@pytest.mark.parametrize(("where", "rank", "error"), [("training", 1, "ESFormerError"), ("validation", 0, "OSError")])
def test_a_rank_that_fails_alone_takes_the_others_along(warm, script, training, starter, where, rank, error):
    before = FAILING.replace("{error}", error).replace("{rank}", str(rank))
    before += "from esformer.training.module import ESFormerModule\n" + FAILURES[where].format(rank=rank)
    command = [script(before=before), *training, "data.workers=1"]
    ranks = warm.start_ranks(2, command) if starter == "torchrun" else [warm.start([*command, "trainer.devices=2"])]
    ours = USER_ERROR if error == "ESFormerError" else 1
    began = time.monotonic()
    codes = [process.wait(60) for process in ranks]
    said = "".join(process.output for process in ranks)
    print(said, codes, time.monotonic()-began)
    assert f"rank {rank} has had enough" in said
    assert codes[rank if starter == "torchrun" else 0] == (ours if starter == "torchrun" or rank == 0 else USER_ERROR)
    if starter == "torchrun":
        assert codes[1 - rank] == USER_ERROR
    if starter == "torchrun" or rank == 1:
        assert GONE in said
    assert said.count("Traceback") == (error == "OSError")
