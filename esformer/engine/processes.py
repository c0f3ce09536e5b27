"""Worker processes of this machine and other ranks: tasks go to whoever is free, and again if whoever had them dies."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from esformer.children import StoppedProcesses
from esformer.engine.executor import EngineError, Executor, Future, RankLostError, Result, Task
from esformer.engine.ranks import RankListener
from esformer.errors import ESFormerError

log = logging.getLogger("esformer")

DEATHS = 3
"""A task that so many workers die of is given up."""
AHEAD = 1
"""Tasks that a worker has in hand beside those it computes, so that it never waits for the next."""


@dataclass(eq=False)
class Worker:
    """Another process that computes; what it was given and has not answered yet.

    Args:
        name: for people.
        connection: to it.
        capacity: how many tasks it computes at a time.
        process: itself, unless it is a rank.
        tasks: by number.
    """

    name: str
    connection: Connection
    capacity: int
    process: subprocess.Popen[bytes] | None = None
    tasks: dict[int, Any] = field(default_factory=dict)


class ProcessExecutor(Executor[Task, Result]):
    """Computes in worker processes of this machine and in other ranks, which may join when it has long begun.

    A worker that dies or is stopped is replaced, and its tasks are computed again. A rank that dies ends the work.

    Args:
        function: of a task; pickled.
        workers: processes on this machine.
        ranks: where the other ranks join.
    """

    def __init__(self, function: Callable[[Task], Result], workers: int, ranks: RankListener | None = None) -> None:
        self.function, self.ranks = function, ranks
        self.workers: list[Worker] = []
        self._to_start = workers
        self._futures: dict[int, Future[Result]] = {}
        self._waiting: deque[tuple[int, Any]] = deque()
        self._deaths: dict[int, int] = {}
        self._count = 0
        self._stopped = StoppedProcesses()

    def submit(self, task: Task) -> Future[Result]:
        future: Future[Result] = Future(self)
        self._count += 1
        self._futures[self._count] = future
        self._waiting.append((self._count, task))
        self._send()
        return future

    def wait(self, futures: Sequence[Future[Any]]) -> list[Future[Any]]:
        while not (done := [future for future in futures if future.done]):
            self.receive()
        return done

    def receive(self, *others: Connection, timeout: float = 1.0) -> set[Connection]:
        """Wait until a worker answers or one of `others` has something to say; gives those of them that have."""
        self._let_ranks_join()
        self._send()
        connections: dict[Any, Worker] = {worker.connection: worker for worker in self.workers}
        ready = wait([*connections, *others], timeout)
        for connection in ready:
            if worker := connections.get(connection):
                self._receive_from(worker)
        self._kill_stopped()
        return {connection for connection in others if connection in ready}

    def shutdown(self, done: bool) -> None:
        while done and self.ranks and self.ranks.lacking:  # the work can be done before they have come
            self._let_ranks_join()
            time.sleep(0.01)
        for worker in self.workers:
            if worker.process is not None:
                worker.process.kill()  # SIGTERM would wait in one that is stopped
                worker.process.wait()
            elif done:
                with suppress(OSError):
                    worker.connection.send(None)
            worker.connection.close()
        self.workers.clear()
        if self.ranks is not None:
            self.ranks.close()

    def _start_worker(self) -> Worker:
        """Start a plain process, which imports nothing of whoever asks for the work."""
        ours, theirs = multiprocessing.Pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "esformer.engine.worker", str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is not for it, but for the process that people talk to
        )
        theirs.close()
        ours.send(self.function)
        return Worker("a worker", ours, 1, process)

    def _let_ranks_join(self) -> None:
        if self.ranks is not None:
            self.workers += [Worker(*joined) for joined in self.ranks.joined()]

    def _send(self) -> None:
        """Give every worker what it can compute, and a little more; start workers when there is something to do."""
        while self._waiting and self._to_start:
            self.workers.append(self._start_worker())
            self._to_start -= 1
        while self._waiting and (free := [w for w in self.workers if len(w.tasks) < w.capacity + AHEAD]):
            worker = min(free, key=lambda w: len(w.tasks) / w.capacity)
            number, task = self._waiting.popleft()
            worker.tasks[number] = task
            try:
                worker.connection.send((number, task))
            except OSError:
                self._replace(worker)

    def _receive_from(self, worker: Worker) -> None:
        try:
            number, outcome = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        del worker.tasks[number]
        if isinstance(outcome, Exception):
            raise outcome
        self._futures.pop(number).set_result(outcome)

    def _kill_stopped(self) -> None:
        """Kill workers that stay stopped (SIGSTOP), which replaces them."""
        processes = {worker.process.pid: worker.process for worker in self.workers if worker.process is not None}
        for pid in self._stopped.among(processes):
            log.warning("worker process %d was stopped (SIGSTOP); another takes its place", pid)
            processes[pid].kill()

    def _replace(self, worker: Worker) -> None:
        """Start another worker for one that is dead, and have its tasks computed again.

        Raises:
            RankLostError: it was a rank.
            EngineError: the task that it was at has killed too many.
        """
        if worker.process is None:
            raise RankLostError(f"{worker.name} is gone; the same command goes on from where it was")
        worker.connection.close()
        code = worker.process.wait()
        self._waiting.extendleft(reversed(worker.tasks.items()))
        if worker.tasks:
            number, task = next(iter(worker.tasks.items()))  # the one that it was working on
            self._deaths[number] = self._deaths.get(number, 0) + 1
            if self._deaths[number] == DEATHS:
                memory = ", most likely for want of memory" if code == -signal.SIGKILL else ""
                raise EngineError(
                    f"{DEATHS} workers died (exit code {code}) of {task}{memory}; the same command goes on from here,"
                    " with fewer workers if it happens again"
                )
        self.workers[self.workers.index(worker)] = self._start_worker()


def serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """In a worker or a rank: answer tasks until there are no more."""
    while (order := connection.recv()) is not None:
        number, task = order
        try:
            outcome = function(task)
        except ESFormerError as error:
            outcome = error
        connection.send((number, outcome))
