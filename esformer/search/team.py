"""Those who score the genotypes of a search: this process, worker processes beside it, and the other ranks."""

import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge, wait
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from lightning.fabric import Fabric

from esformer.children import StoppedProcesses
from esformer.errors import ESFormerError, ProcessLostError
from esformer.search.worker import Measured, Scorer, Task, serve

log = logging.getLogger("esformer")

DEATHS = 3
"""A genotype that so many workers die of is given up."""
AHEAD = 1
"""Genotypes that a member has in hand beside those it works on, so that it never waits for the next."""
JOINING = 600.0
"""Seconds in which every rank must have joined."""
HANDSHAKE = 10.0
"""Seconds in which whoever comes through the door must have shown that it belongs here."""
VISITORS = 64
"""Who may be about it at the same time."""


class SearchError(ESFormerError):
    """A search that cannot go on; what it has found so far is in the journal."""


class RankLostError(SearchError, ProcessLostError):
    """Another rank is gone."""


class Team(Protocol):
    """Takes tasks, and gives their results in whatever order they are asked for."""

    def submit(self, task: Task) -> int:
        """Begin with a task; gives the number of its result."""

    def result(self, number: int) -> Measured:
        """Wait for a result; it can be had once."""

    def close(self, done: bool) -> None:
        """Let everybody go, with the search done or not."""


class Alone:
    """A team of this process: it scores when a result is asked for."""

    def __init__(self, scorer: Callable[[Task], Measured]) -> None:
        self.scorer = scorer
        self._tasks: dict[int, Task] = {}
        self._count = 0

    def submit(self, task: Task) -> int:
        self._count += 1
        self._tasks[self._count] = task
        return self._count

    def result(self, number: int) -> Measured:
        return self.scorer(self._tasks.pop(number))

    def close(self, done: bool) -> None:
        self._tasks.clear()


@dataclass(eq=False)
class Member:
    """Another process that scores; what it was given and has not answered yet."""

    name: str
    connection: Connection
    capacity: int
    process: subprocess.Popen[bytes] | None = None
    tasks: dict[int, Task] = field(default_factory=dict)


class Processes:
    """A team of worker processes here and of other ranks, which may join when it has long begun.

    A worker that dies or is stopped is replaced and its genotypes scored again. A rank that dies ends the search.

    Args:
        scorer: how to score.
        workers: processes on this machine.
        ranks: other ranks that will join.
        door: through which they come.
    """

    def __init__(self, scorer: Scorer, workers: int, ranks: int = 0, door: "Door | None" = None) -> None:
        self.scorer, self.workers, self.ranks, self.door = scorer, workers, ranks, door
        self.members: list[Member] = []
        self._waiting: deque[int] = deque()
        self._tasks: dict[int, Task] = {}
        self._results: dict[int, Measured] = {}
        self._deaths: dict[int, int] = {}
        self._count = 0
        self._deadline = time.monotonic() + JOINING
        self._stopped = StoppedProcesses()

    def submit(self, task: Task) -> int:
        self._count += 1
        self._tasks[self._count] = task
        self._waiting.append(self._count)
        self._hand_out()
        return self._count

    def result(self, number: int) -> Measured:
        while number not in self._results:
            self.attend()
        return self._results.pop(number)

    def attend(self, *others: Connection, timeout: float = 1.0) -> set[Connection]:
        """Wait until somebody answers or one of `others` has something to say; gives those of them that have."""
        self._welcome()
        self._hand_out()
        connections: dict[Any, Member] = {member.connection: member for member in self.members}
        ready = wait([*connections, *others], timeout)
        for connection in ready:
            if member := connections.get(connection):
                self._hear(member)
        self._look_after()
        return {connection for connection in others if connection in ready}

    def ready(self) -> list[tuple[int, Measured]]:
        """The results that are there."""
        found, self._results = list(self._results.items()), {}
        return found

    def close(self, done: bool) -> None:
        while done and self.ranks:  # a search can be over before they have come
            self._welcome()
            time.sleep(0.01)
        for member in self.members:
            if member.process is not None:
                member.process.kill()  # SIGTERM would wait in one that is stopped
                member.process.wait()
            elif done:
                with suppress(OSError):
                    member.connection.send(None)
            member.connection.close()
        self.members.clear()
        if self.door is not None:
            self.door.close()

    def _hire(self) -> Member:
        """Start a worker: a plain process, so that it imports nothing of whoever searches."""
        ours, theirs = multiprocessing.Pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "esformer.search.worker", str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is not for it, but for the process that people talk to
        )
        theirs.close()
        ours.send(self.scorer)
        return Member("a worker", ours, 1, process)

    def _welcome(self) -> None:
        """Let in the ranks that have come meanwhile."""
        if self.door is None or not self.ranks:
            return
        for name, capacity, connection in self.door.come():
            self.ranks -= 1
            self.members.append(Member(name, connection, capacity))
            connection.send(self.scorer)
        if self.ranks and time.monotonic() > self._deadline:
            raise SearchError(f"{self.ranks} of the ranks did not join within {JOINING:.0f} s; see what they say")

    def _hand_out(self) -> None:
        """Everybody gets what he can work on, and a little more. Workers are hired when there is something to do."""
        while self._waiting and self.workers:
            self.members.append(self._hire())
            self.workers -= 1
        while self._waiting and (free := [m for m in self.members if len(m.tasks) < m.capacity + AHEAD]):
            member = min(free, key=lambda m: len(m.tasks) / m.capacity)
            number = self._waiting.popleft()
            member.tasks[number] = self._tasks[number]
            try:
                member.connection.send((number, self._tasks[number]))
            except OSError:
                self._lose(member)

    def _hear(self, member: Member) -> None:
        try:
            number, outcome = member.connection.recv()
        except (EOFError, OSError):
            self._lose(member)
            return
        del member.tasks[number]
        del self._tasks[number]
        if isinstance(outcome, Exception):
            raise outcome
        self._results[number] = outcome

    def _look_after(self) -> None:
        """Kill workers that stay stopped (SIGSTOP); others take their place, and what they had in hand."""
        workers = {member.process.pid: member.process for member in self.members if member.process is not None}
        for pid in self._stopped.among(workers):
            log.warning("worker process %d was stopped (SIGSTOP); another takes its place", pid)
            workers[pid].kill()

    def _lose(self, member: Member) -> None:
        if member.process is None:
            raise RankLostError(f"{member.name} is gone; the same command goes on from the journal")
        member.connection.close()
        code = member.process.wait()
        for number in reversed(member.tasks):
            self._waiting.appendleft(number)
        if member.tasks:
            number, task = next(iter(member.tasks.items()))  # the one that it was working on
            self._deaths[number] = self._deaths.get(number, 0) + 1
            if self._deaths[number] == DEATHS:
                memory = ", most likely for want of memory" if code == -signal.SIGKILL else ""
                raise SearchError(
                    f"{DEATHS} workers died (exit code {code}) of genotype {task.genotype.digest}{memory}; the same"
                    " command goes on from here, with fewer search.workers if it happens again"
                )
        self.members[self.members.index(member)] = self._hire()


class Door:
    """Where the other ranks find rank 0; they come in while it is at work."""

    def __init__(self, host: str) -> None:
        self.key = os.urandom(32)
        self._closed = False
        self._listener = Listener((host, 0), backlog=1024)  # without a key, for it would wait for each in turn
        self._arrived: SimpleQueue[tuple[str, int, Connection]] = SimpleQueue()
        self._visitors = threading.Semaphore(VISITORS)
        threading.Thread(target=self._open, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.address[1])

    def come(self) -> list[tuple[str, int, Connection]]:
        """Name, capacity and connection of those who arrived since the last time."""
        arrived = []
        try:
            while True:
                arrived.append(self._arrived.get_nowait())
        except Empty:
            return arrived

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            socket.create_connection(("localhost", self.port), timeout=1).close()  # wakes the thread
        self._listener.close()

    def _open(self) -> None:
        while not self._closed:
            self._visitors.acquire()
            try:
                connection = self._listener.accept()
            except OSError:  # whoever that was
                self._visitors.release()
            else:
                threading.Thread(target=self._admit, args=(connection,), daemon=True).start()

    def _admit(self, connection: Connection) -> None:
        """Let in who knows the key; one that says nothing, or too slowly, is shown out."""
        clock = threading.Timer(HANDSHAKE, _hang_up, [connection])
        clock.daemon = True
        clock.start()
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
            _keep_alive(connection)
            name, capacity = connection.recv()
        except Exception:  # whoever that was, and whatever it sent
            connection.close()
        else:
            self._arrived.put((name, capacity, connection))
        finally:
            clock.cancel()
            self._visitors.release()


def gather(fabric: Fabric, scorer: Scorer, workers: int) -> Team | None:
    """The team of rank 0; on every other rank this scores for it until the search is over, and gives None.

    Raises:
        SearchError: on another rank: rank 0 is gone.
    """
    if fabric.world_size == 1:
        return Alone(scorer) if workers == 1 else Processes(scorer, workers)
    environment: Any = getattr(fabric.strategy, "cluster_environment")  # noqa: B009  (not every strategy has one)
    host: str = environment.main_address
    door = Door("localhost" if host in ("localhost", "127.0.0.1") else "") if fabric.is_global_zero else None
    port, key = fabric.broadcast((door.port, door.key) if door else (0, b""))
    if door is not None:
        return Processes(scorer, workers, fabric.world_size - 1, door)
    try:
        with Client((host, port), authkey=key) as rank0:
            _keep_alive(rank0)
            rank0.send((f"rank {fabric.global_rank}", workers))
            _help(rank0, replace(rank0.recv(), device=str(fabric.device)), workers)
    except (EOFError, OSError):
        raise RankLostError("rank 0 is gone; the same command goes on from the journal") from None
    return None


def _help(rank0: Connection, scorer: Scorer, workers: int) -> None:
    """Score for rank 0 until it says that the search is over."""
    if workers == 1:
        return serve(rank0, scorer)
    team, numbers = Processes(scorer, workers), dict[int, int]()
    try:
        while True:
            if team.attend(rank0):
                if (order := rank0.recv()) is None:
                    return None
                number, task = order
                numbers[team.submit(task)] = number
            for mine, measured in team.ready():
                rank0.send((numbers.pop(mine), measured))
    except ESFormerError as error:  # rank 0 gives up then
        rank0.send((next(iter(numbers.values())), error))
        raise
    finally:
        team.close(done=False)


def _hang_up(connection: Connection) -> None:
    """Have whoever waits for the other end wait no more."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as other:
        other.shutdown(socket.SHUT_RDWR)


def _keep_alive(connection: Connection) -> None:
    """Notice within minutes if the machine at the other end is gone without a word."""
    with socket.socket(fileno=os.dup(connection.fileno())) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        other.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        other.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
