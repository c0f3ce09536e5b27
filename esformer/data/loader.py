"""A DataLoader that comes to an end whatever becomes of its processes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info

from esformer.children import end_with_parent, is_stopped, kill_children
from esformer.data.base import DataError

T = TypeVar("T")

TICKS = 10
"""Parts of the patience that are counted. What passes while the whole job is suspended is at most one of them."""


class Loader(DataLoader[T]):
    """A DataLoader that waits for a batch no longer than `patience` seconds.

    DataLoader's own timeout does not hold when a worker is stopped: a batch is a file descriptor, which is fetched from
    the worker in whose queue it was found, without a limit. Here a timer interrupts whatever the main thread waits in.

    Args:
        dataset: as DataLoader's.
        patience: seconds; without worker processes they do not count.
        source: where the images lie, for people.
        collate_fn: as DataLoader's.
        settings: more of DataLoader's.

    Raises:
        DataError: while iterating: no batch came.
    """

    def __init__(
        self, dataset: Any, *, patience: float, source: str, collate_fn: Callable[[list[Any]], Any], **settings: Any
    ) -> None:
        super().__init__(dataset, collate_fn=Shared(collate_fn), worker_init_fn=begin_worker, **settings)
        self.patience, self.source = patience, source

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        timed = self.num_workers > 0 and threading.current_thread() is threading.main_thread()
        self.timeout = 0 if timed or not self.num_workers else self.patience
        if not timed:
            return super().__iter__()
        # a SIGTERM to all processes of a job must not end a worker that has not come to ignore it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            with self._limited():
                iterator = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._batches(iterator)

    def _batches(self, iterator: Iterator[T]) -> Iterator[T]:
        while True:
            with self._limited():
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            yield batch

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Within, the main thread is interrupted when it has been awake, and waiting, for too long."""
        ticks = 0

        def tick(number: int, frame: object) -> None:
            nonlocal ticks
            ticks += 1
            if ticks >= TICKS:
                raise TimeoutError

        handler = signal.signal(signal.SIGALRM, tick)
        timer = signal.setitimer(signal.ITIMER_REAL, self.patience / TICKS, self.patience / TICKS)
        try:
            yield
        except Exception:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if ticks < TICKS:
                raise
            error = self._timed_out()
            self._iterator = None
            kill_children()  # else DataLoader would wait ten seconds for each that is stopped
            raise error from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)

    def _timed_out(self) -> DataError:
        import multiprocessing

        waited = f"no images came from {self.source} for data.timeout={self.patience:g} seconds"
        for worker in multiprocessing.active_children():
            if worker.pid is not None and is_stopped(worker.pid):
                return DataError(f"{waited}: process {worker.pid}, which loads them, has been stopped (SIGSTOP)")
        return DataError(f"{waited}; is it still there?")


class Shared:
    """Collates, and moves the batch to shared memory at once.

    DataLoader leaves that to a thread of the worker, which loses the batch and the error if there is no room.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        batch = self.collate(items)
        if get_worker_info() is not None:
            for part in batch:
                if isinstance(part, torch.Tensor):
                    part.share_memory_()
        return batch


def begin_worker(worker: int) -> None:
    """A process that loads images works until the training lets it go or is gone, whatever signals come meanwhile.

    Where a cluster sends SIGTERM to all processes of a job, the training could not save its state otherwise.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    end_with_parent()
