"""Worker processes: the same results as without, whatever happens to them."""

import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Client
from pathlib import Path

import pytest
from functions import Dying, Hashed, Late, Refusing

from esformer.children import StoppedProcesses
from esformer.engine import processes, ranks
from esformer.engine.executor import EngineError, SerialExecutor, compute
from esformer.engine.processes import DEATHS, ProcessExecutor
from esformer.engine.ranks import RankListener
from esformer.engine.start import executor
from esformer.errors import ESFormerError
from esformer.search.scorer import Task
from esformer.space import SearchSpace

SPACE = SearchSpace.for_size("S0")
GENOTYPES = [SPACE.sample(random.Random(i)) for i in range(24)]
TASKS = [Task(("a", "b"), genotype) for genotype in GENOTYPES]


def results(executor, tasks=TASKS):
    """Ask for all, and take the results in another order."""
    futures = [executor.submit(task) for task in tasks]
    for future in futures[::7] + futures:
        assert future.result() is future.result() and future.done
    return [future.result().scores for future in futures]


EXPECTED = results(SerialExecutor(Hashed()))


@pytest.fixture
def workers(warm_workers):
    started = []

    def start(function, workers):
        started.append(ProcessExecutor(function, workers))
        return started[-1]

    yield start
    for one in started:
        ours = [worker.process for worker in one.workers]
        one.shutdown(done=True)
        assert not any(process.poll() is None for process in ours)


@pytest.mark.slow
def test_workers_compute_what_one_process_does_and_share_the_work(workers):
    assert len(set(EXPECTED)) == len(TASKS)
    two = workers(Hashed(0.05), 2)
    results(two, TASKS[:2])  # they have started
    began = time.perf_counter()
    assert results(two) == EXPECTED
    assert time.perf_counter() - began < 0.05 * len(TASKS) * 0.75


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_results_come_as_they_are_there_and_no_more_tasks_are_taken_than_needed(warm_workers, number):
    taken = []
    coming = compute(executor(Late(), number), (taken.append(task) or task for task in range(9)), ahead=4)
    first = next(coming)
    assert taken == [0, 1, 2, 3]
    assert first == (0 if number == 1 else 1)  # the first task takes longest
    assert sorted([first, *coming]) == taken == [*range(9)]


def test_work_that_is_left_early_is_shut_down(warm_workers):
    two = executor(Late(), 2)
    coming = compute(two, range(9), ahead=4)
    next(coming)
    coming.close()
    assert two.workers == []


@pytest.mark.slow
def test_workers_that_die_are_replaced_and_their_tasks_computed_again(workers, tmp_path):
    dying = workers(Dying(folder=str(tmp_path)), 2)
    assert results(dying, TASKS[:12]) == EXPECTED[:12]
    doomed = [task.genotype.digest for task in TASKS[:12] if int(task.genotype.digest, 16) % 5 == 0]
    assert doomed and sorted(mark.name for mark in tmp_path.iterdir()) == sorted(doomed)


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_given_up_with_a_sentence(workers, tmp_path):
    doomed = next(task for task in TASKS if int(task.genotype.digest, 16) % 5 == 0)
    with pytest.raises(
        EngineError, match=rf"{DEATHS} workers died \(exit code -9\) of genotype {doomed.genotype.digest}"
    ):
        results(workers(Dying(folder=str(tmp_path), times=99), 1), [doomed])


@pytest.mark.slow
def test_what_cannot_be_computed_is_said_as_in_one_process(workers):
    for other in (SerialExecutor(Refusing()), workers(Refusing(), 1)):
        with pytest.raises(ESFormerError, match=f"{GENOTYPES[0].digest} cannot be scored"):
            results(other, TASKS[:1])


def test_a_stopped_worker_is_replaced_and_its_tasks_computed_again(workers, monkeypatch, caplog):
    monkeypatch.setattr(processes, "StoppedProcesses", lambda: StoppedProcesses(patience=1))
    two = workers(Hashed(0.01), 2)
    results(two, TASKS[:2])
    stopped = two.workers[0].process.pid
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    assert results(two) == EXPECTED
    assert time.monotonic() - began < 15
    assert f"worker process {stopped} was stopped (SIGSTOP); another takes its place" in caplog.text
    os.kill(two.workers[1].process.pid, signal.SIGSTOP)  # closing must not wait for it


def test_strangers_who_say_nothing_or_nonsense_keep_no_rank_out(monkeypatch):
    monkeypatch.setattr(ranks, "HANDSHAKE", 1.0)
    monkeypatch.setattr(ranks, "CONNECTING", 8)
    listener = RankListener("localhost", 1)
    address = ("localhost", listener.port)
    silent = [socket.create_connection(address) for _ in range(12)]  # more than may be there at the same time
    talking = socket.create_connection(address)
    talking.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    with pytest.raises((multiprocessing.AuthenticationError, OSError, EOFError)):
        Client(address, authkey=b"guessed")
    with Client(address, authkey=listener.key) as rank:
        rank.send(("rank 1", 2))
        deadline = time.monotonic() + 10
        while not (joined := listener.joined()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ((name, connection, capacity),) = joined
        assert (name, capacity, listener.lacking) == ("rank 1", 2, 0)
        time.sleep(1.2)  # the clock has stopped: nobody hangs up on who is known
        connection.send("hello")
        assert rank.recv() == "hello"
    assert all(stranger.recv(1000) is not None and stranger.recv(1000) == b"" for stranger in silent[:4])
    for stranger in (*silent, talking):
        stranger.close()
    connection.close()
    listener.close()


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from functions import Hashed
from test_engine import TASKS
from esformer.engine.processes import ProcessExecutor

if __name__ == "__main__":
    two = ProcessExecutor(Hashed(0.01), 2)
    [future.result() for future in [two.submit(TASKS[0]), two.submit(TASKS[1])]]
    print(*(worker.process.pid for worker in two.workers), flush=True)
    time.sleep(600)
"""


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"  # nobody may come for an orphan


@pytest.mark.nightly
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, how):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py", Path(__file__).parent]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (tests may run in the background)
    parent = subprocess.Popen(command, env=env, preexec_fn=listen, **pipes)
    line = parent.stdout.readline()
    assert re.fullmatch(r"\d+ \d+\n", line), parent.communicate()[1]
    os.kill(parent.pid, how)
    _, said = parent.communicate(timeout=60)  # the workers hold its pipes until they end
    assert said.count("KeyboardInterrupt") == (how == signal.SIGINT)  # the parent's own alone
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in map(int, line.split())):  # a process lets its pipes go before it is gone
        assert time.monotonic() < deadline
        time.sleep(0.02)
