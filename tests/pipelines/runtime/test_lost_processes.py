"""Processes that die, hang or are stopped: whoever needs them ends soon, with the reason and the right exit code."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import esformer
from esformer.checkpoint import Checkpoint
from esformer.errors import STOPPED, USER_ERROR
from pipelines.runtime.errors import explain

IMPATIENT = """
import os, sys
from pipelines import train, evaluate, search
from pipelines.runtime import cli
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
    found = []
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with suppress(OSError):  # a thread that has ended meanwhile
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


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


@pytest.mark.nightly
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


@pytest.mark.nightly
def test_a_killed_training_takes_its_stopped_processes_along_and_its_folder_is_free(warm, script, training, tmp_path):
    command = [script(), *training, "data.workers=2"]
    process = warm.start(command)
    trains(process)
    for pid in (stopped := children(process)):
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait(10)
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in stopped):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [2, 0])
def test_no_number_of_sigterms_to_all_processes_is_a_want_of_memory(warm, script, training, tmp_path, workers):
    process = warm.start([script(), *training, f"data.workers={workers}"])
    trains(process)
    for _ in range(4):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.02)
    assert process.wait(30) == STOPPED, process.output
    assert "error" not in process.output and last_line(process) == "stopped; the same command goes on from here"
    assert "asked to stop in epoch" in process.output


@pytest.mark.nightly
def test_a_process_that_loads_images_and_dies_of_something_else_is_no_want_of_memory(warm, script, training):
    process = warm.start([script(), *training, "data.workers=2"])
    trains(process)
    os.kill(children(process)[0], signal.SIGABRT)
    assert process.wait(30) == USER_ERROR, process.output
    how = "(was killed by signal: Aborted|ended)"  # as DataLoader tells it, which does not always know the signal
    said = f"error: a process that loads images {how}; see what it said. The same command goes on"
    assert re.fullmatch(said, last_line(process)), process.output
    assert "memory" not in process.output


SILENT = "rank 1 has given no sign of life for 4 seconds: it is stopped, or its machine hangs. The same command goes on"


@pytest.mark.nightly
def test_a_stopped_rank_ends_the_others(warm, script, training):
    ranks = warm.start_ranks(2, [script(), *training, "data.workers=0"])
    trains(ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert ranks[0].wait(20) == USER_ERROR, ranks[0].output
    assert time.monotonic() - began < 12
    assert last_line(ranks[0]) == f"error: {SILENT}"


@pytest.mark.nightly
def test_a_stopped_first_rank_ends_the_others(warm, script, training):
    ranks = warm.start_ranks(2, [script(), *training, "data.workers=0"])
    trains(ranks[0])
    ranks[0].send_signal(signal.SIGSTOP)
    assert ranks[1].wait(20) == USER_ERROR, ranks[1].output
    assert last_line(ranks[1]) == f"error: {SILENT}".replace("rank 1", "rank 0")


@pytest.mark.nightly
def test_a_signal_ends_a_rank_that_waits_for_a_stopped_one(warm, script, training):
    """The watchdog's silence is long here: it is the signal that ends it."""
    patient = script(before="watchdog.SILENCE = 600")
    ranks = warm.start_ranks(2, [patient, *training, "data.workers=0"])
    trains(ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    ranks[0].terminate()
    assert ranks[0].wait(20) == STOPPED, ranks[0].output
    assert last_line(ranks[0]) == "stopped; the same command goes on from here"


@pytest.mark.nightly
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
    "training": ("esformer.training.module", "ESFormerModule", "training_step", 9),
    "validation": ("esformer.training.module", "ESFormerModule", "validation_step", 3),
    "evaluation": ("esformer.training.evaluation", "Evaluator", "validation_step", 1),
    "search 0": ("callbacks.search", "SearchHistory", "on_evaluation", 2),
    "search 1": ("esformer.search.scorer", "Scorer", "__call__", 2),
}


def failing(where, rank, error="ESFormerError"):
    """What makes a rank fail somewhere, after some times at which all was well."""
    module, kind, method, times = FAILURES[where]
    functions = FAILING.replace("{error}", error).replace("{rank}", str(rank))
    return f"{functions}\nfrom {module} import {kind}\nfails({kind}, '{method}', {rank}, {times})"


@pytest.mark.nightly
@pytest.mark.parametrize(("where", "rank", "error"), [("training", 1, "ESFormerError"), ("validation", 0, "OSError")])
def test_a_rank_that_fails_alone_takes_the_others_along(warm, script, training, where, rank, error):
    ranks = warm.start_ranks(2, [script(before=failing(where, rank, error)), *training, "data.workers=1"])
    codes = [process.wait(60) for process in ranks]
    said = [process.output for process in ranks]
    assert codes[rank] == (USER_ERROR if error == "ESFormerError" else 1) and codes[1 - rank] == USER_ERROR, said
    assert last_line(ranks[rank]).endswith(f"rank {rank} has had enough")
    assert last_line(ranks[1 - rank]) == f"error: {GONE}"
    assert said[rank].count("Traceback") == (error == "OSError") and "Traceback" not in said[1 - rank]


@pytest.mark.nightly
def test_so_it_is_when_lightning_has_started_the_others(warm, script, training):
    command = [script(before=failing("training", 1, "ESFormerError")), *training, "data.workers=1", "trainer.devices=2"]
    process = warm.start(command)
    wait_for(lambda: len(children(process)) > 0, process)
    others = children(process)
    assert process.wait(90) == USER_ERROR, process.output
    assert "error: rank 1 has had enough" in process.output and "Traceback" not in process.output
    assert GONE in process.output
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in others):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.nightly
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("where", ["search", "evaluation"])
def test_so_it_is_in_a_search_and_in_an_evaluation(warm, script, training, tmp_path, where, rank):
    if where == "search":
        settings = ["--quick", "wandb.mode=disabled", "search.accelerator=cpu", f"run.dir={tmp_path / 'search'}"]
        command = [script("cli.run(search.main)", failing(f"search {rank}", rank)), *settings]
    else:
        settings = [f"data.root={tmp_path / 'images'}", "data.img_size=32", "data.workers=1", "trainer.accelerator=cpu"]
        settings += ["--batch-size", "4", "--out", tmp_path / "evaluated"]
        command = [script("cli.run(evaluate.main)", failing(where, rank)), weights(tmp_path), *settings]
    ranks = warm.start_ranks(2, command)
    assert [process.wait(90) for process in ranks] == [USER_ERROR, USER_ERROR], [process.output for process in ranks]
    speaker = 0 if where == "search" else rank  # to whom the other ranks of a search report
    assert last_line(ranks[speaker]) == f"error: rank {rank} has had enough"
    assert "is gone" in last_line(ranks[1 - speaker])
    assert "Traceback" not in ranks[0].output + ranks[1].output


def weights(folder):
    """A file of random weights for ten classes."""
    genotype = esformer.Genotype.shipped("esformer_s0")
    drawn = esformer.ESFormer(genotype, num_classes=10, img_size=32).state_dict()
    path = folder / "weights.safetensors"
    Checkpoint(path, genotype, 10, 3, (32, 32), drawn, None).save(path)
    return path


@pytest.mark.nightly
def test_full_shared_memory_is_named(tmp_path, training):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("only root may have a /dev/shm of its own")
    command = [sys.executable, "-m", "pipelines.train", *training, "data.workers=2", "recipe.epochs=1"]
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=100k tmpfs /dev/shm && exec "$@"', "sh"]
    done = subprocess.run([*mount, *map(str, command)], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == USER_ERROR, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: shared memory (/dev/shm, 0 MiB) has no room left")
    assert "--shm-size=" in done.stderr and "--ipc=host" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("message", "cause", "expected"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible", None, "--ipc=host"),
        (
            "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)",
            None,
            "--shm-size",
        ),
        ("NCCL error: Error while creating shared memory segment /dev/shm/nccl-1 (size 9637888)", None, "--ipc=host"),
        (
            "DataLoader worker (pid(s) 7) exited unexpectedly",
            "DataLoader worker (pid 7) is killed by signal: Killed.",
            "memory",
        ),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", None, "images ended; see"),
        ("[../third_party/gloo/pair.cc:1] Connection closed by peer [127.0.0.1]:1", None, GONE),
        ("NCCL error in: x, remote process exited or there was a network error", None, GONE),
        ("[..] Timed out waiting 1800000ms for recv operation to complete", None, GONE),
    ],
)
def test_what_pytorch_says_of_lost_processes(message, cause, expected):
    error = RuntimeError(message)
    error.__cause__ = cause and RuntimeError(cause)
    assert expected in str(explain(error))


def test_other_errors_stay_what_they_are():
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(28, "No space left", "/x/last.ckpt"),
    ):
        assert explain(error) is error
