"""Which executor there is: of this process, of worker processes, or of all ranks."""

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from lightning.fabric import Fabric

from esformer.engine.executor import Executor, Future, RankLostError, Result, SerialExecutor, Task
from esformer.engine.processes import ProcessExecutor, serve
from esformer.engine.ranks import RankListener, join
from esformer.errors import ESFormerError


def executor(function: Callable[[Task], Result], workers: int) -> Executor[Task, Result]:
    """What computes on this machine: this process for one worker, otherwise worker processes.

    Args:
        function: of a task; worker processes get it pickled, and compute with one thread each.
        workers: how many tasks are computed at a time.
    """
    return SerialExecutor(function) if workers == 1 else ProcessExecutor(function, workers)


def executor_of_ranks(
    fabric: Fabric, function: Callable[[Task], Result], workers: int
) -> Executor[Task, Result] | None:
    """What computes on all ranks, for rank 0; another rank computes here until that is shut down, and gets None.

    Args:
        fabric: the ranks, launched. Afterwards they are as they were, and can train together.
        function: of a task; each rank has its own.
        workers: how many tasks are computed at a time on each rank.

    Raises:
        RankLostError: on another rank: rank 0 is gone.
        ESFormerError: on another rank: work that cannot go on.
    """
    if fabric.world_size == 1:
        return executor(function, workers)
    environment: Any = getattr(fabric.strategy, "cluster_environment")  # noqa: B009  (not every strategy has one)
    host: str = environment.main_address
    local = host in ("localhost", "127.0.0.1")
    ranks = RankListener("localhost" if local else "", fabric.world_size - 1) if fabric.is_global_zero else None
    port, key = fabric.broadcast((ranks.port, ranks.key) if ranks else (0, b""))
    if ranks is not None:
        return ProcessExecutor(function, workers, ranks)
    try:
        with join(host, port, key, f"rank {fabric.global_rank}", workers) as rank0:
            _compute_for(rank0, function, workers)
    except (EOFError, OSError):
        raise RankLostError("rank 0 is gone; the same command goes on from where it was") from None
    return None


def _compute_for(rank0: Connection, function: Callable[[Any], Any], workers: int) -> None:
    """Compute for rank 0 until it says that the work is done."""
    if workers == 1:
        return serve(rank0, function)
    here, numbers = ProcessExecutor(function, workers), dict[Future[Any], int]()
    try:
        while True:
            if here.receive(rank0):
                if (order := rank0.recv()) is None:
                    return None
                number, task = order
                numbers[here.submit(task)] = number
            for future in [future for future in numbers if future.done]:
                rank0.send((numbers.pop(future), future.result()))
    except ESFormerError as error:  # rank 0 gives up then
        rank0.send((next(iter(numbers.values())), error))
        raise
    finally:
        here.shutdown(done=False)
