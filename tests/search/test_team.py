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
from scorers import Dying, Hashed, Refusing
from searches import SPACE

from esformer.children import StoppedProcesses
from esformer.errors import ESFormerError
from esformer.search import team as team_module
from esformer.search.team import DEATHS, Alone, Door, Processes, SearchError
from esformer.search.worker import Task

GENOTYPES = [SPACE.sample(random.Random(i)) for i in range(24)]
TASKS = [Task(("a", "b"), genotype) for genotype in GENOTYPES]


def results(team, tasks=TASKS):
    """Ask for all, and take the results in another order."""
    numbers = [team.submit(task) for task in tasks]
    found = {number: team.result(number) for number in sorted(numbers, key=lambda n: n % 7)}
    return [found[number].scores for number in numbers]


EXPECTED = results(Alone(Hashed()))


@pytest.fixture
def team(warm_workers):
    teams = []

    def make(scorer, workers):
        teams.append(Processes(scorer, workers))
        return teams[-1]

    yield make
    for team in teams:
        processes = [member.process for member in team.members]
        team.close(done=True)
        assert not any(process.poll() is None for process in processes)


@pytest.mark.slow
def test_workers_score_as_one_process_does_and_share_the_work(team):
    assert len(set(EXPECTED)) == len(TASKS)
    two = team(Hashed(0.05), 2)
    results(two, TASKS[:2])  # they have started
    began = time.perf_counter()
    assert results(two) == EXPECTED
    assert time.perf_counter() - began < 0.05 * len(TASKS) * 0.75
    assert two.submit(TASKS[0]) != two.submit(TASKS[0])


@pytest.mark.slow
def test_workers_that_die_are_replaced_and_their_genotypes_scored_again(team, tmp_path):
    dying = team(Dying(folder=str(tmp_path)), 2)
    assert results(dying, TASKS[:12]) == EXPECTED[:12]
    doomed = [task.genotype.digest for task in TASKS[:12] if int(task.genotype.digest, 16) % 5 == 0]
    assert doomed and sorted(mark.name for mark in tmp_path.iterdir()) == sorted(doomed)


@pytest.mark.slow
def test_a_genotype_that_kills_every_worker_is_given_up_with_a_sentence(team, tmp_path):
    doomed = next(task for task in TASKS if int(task.genotype.digest, 16) % 5 == 0)
    with pytest.raises(
        SearchError, match=rf"{DEATHS} workers died \(exit code -9\) of genotype {doomed.genotype.digest}"
    ):
        results(team(Dying(folder=str(tmp_path), times=99), 1), [doomed])


@pytest.mark.slow
def test_what_cannot_be_scored_is_said_as_in_one_process(team):
    for other in (Alone(Refusing()), team(Refusing(), 1)):
        with pytest.raises(ESFormerError, match=f"{GENOTYPES[0].digest} cannot be scored"):
            results(other, TASKS[:1])


def test_a_stopped_worker_is_replaced_and_its_genotypes_scored_again(team, monkeypatch, caplog):
    monkeypatch.setattr(team_module, "StoppedProcesses", lambda: StoppedProcesses(patience=1))
    two = team(Hashed(0.01), 2)
    results(two, TASKS[:2])
    stopped = two.members[0].process.pid
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    assert results(two) == EXPECTED
    assert time.monotonic() - began < 15
    assert f"worker process {stopped} was stopped (SIGSTOP); another takes its place" in caplog.text
    os.kill(two.members[1].process.pid, signal.SIGSTOP)  # closing must not wait for it


def test_visitors_who_say_nothing_or_nonsense_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(team_module, "HANDSHAKE", 1.0)
    monkeypatch.setattr(team_module, "VISITORS", 8)
    door = Door("localhost")
    address = ("localhost", door.port)
    silent = [socket.create_connection(address) for _ in range(12)]  # more than may be there at the same time
    talking = socket.create_connection(address)
    talking.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    with pytest.raises((multiprocessing.AuthenticationError, OSError, EOFError)):
        Client(address, authkey=b"guessed")
    with Client(address, authkey=door.key) as rank:
        rank.send(("rank 1", 2))
        deadline = time.monotonic() + 10
        while not (arrived := door.come()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ((name, capacity, connection),) = arrived
        assert (name, capacity) == ("rank 1", 2)
        time.sleep(1.2)  # the clock has stopped: nobody hangs up on who is known
        connection.send("hello")
        assert rank.recv() == "hello"
    assert all(visitor.recv(1000) is not None and visitor.recv(1000) == b"" for visitor in silent[:4])
    for visitor in (*silent, talking):
        visitor.close()
    connection.close()
    door.close()


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from scorers import Hashed
from test_team import TASKS
from esformer.search.team import Processes

if __name__ == "__main__":
    team = Processes(Hashed(0.01), 2)
    team.result(team.submit(TASKS[0])), team.result(team.submit(TASKS[1]))
    print(*(member.process.pid for member in team.members), flush=True)
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
