"""Watchdog: ends a process whose main thread waits for what will never come.

A rank that waits for another one, in a collective of gloo's or NCCL's, runs no Python: no signal is handled and no
error raised until the other one answers. If that is stopped, or hangs with its machine, this takes half an hour with
gloo and may take for ever with NCCL. So a thread listens to signals, and to the other ranks' signs of life: that way a
slow rank (a long validation, a first compilation, a checkpoint on a slow disk) is told from one that is lost.

All is counted in seconds in which this process was awake: a job that is suspended as a whole goes on afterwards.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from esformer.errors import USER_ERROR
from pipelines.runtime import signals
from pipelines.runtime.errors import PEER_SENTENCE

TICK = 1.0
"""Seconds between two looks."""
BEAT = 2.0
"""Seconds between two signs of life."""
SILENCE = 40.0
"""Seconds without one after which a rank is lost."""
PATIENCE = 40.0
"""Seconds after a signal in which a process must have begun to stop; more, if steps took long before."""
LINGER = 10.0
"""Seconds that a process has to end by itself when another one has failed: it may know more about it."""
FAREWELL = 10.0
"""Seconds for loggers to send what they have."""
INTERRUPTED = 1
"""Exit code after Ctrl-C."""


class Peers:
    """The other ranks of a process group, as their signs of life in its store tell.

    Every rank leaves one of its own; rank 0 looks at all of them and passes its verdict on, the others look at rank 0.

    Args:
        group: how many groups this process has belonged to before; a store can outlive one.
    """

    def __init__(self, group: int) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.store = dist.distributed_c10d._get_default_store().clone()  # a connection of our own
        self.store.set_timeout(timedelta(seconds=SILENCE))
        self.prefix = f"sign of life/{group}"
        self.watched = range(1, self.size) if self.rank == 0 else (0,)
        self.signs: dict[int, bytes] = {}
        self.verdict: int | None = None
        self._state = "alive"
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name="signs of life")
        self._thread.start()

    def announce_end(self, state: str) -> None:
        """Say once more how it stands, `done` or `failed`, and then nothing any more."""
        self._state = state
        self._wake.set()
        self._thread.join(2 * BEAT)
        if state == "failed" and self.rank == 0:
            time.sleep(1.5 * BEAT)  # the store may end with this process; the others should have read it

    def condemn(self, rank: int) -> None:
        """Tell the others which rank is lost; rank 0's business."""
        self.verdict = rank

    def _live(self) -> None:
        count = 0
        with suppress(Exception):  # the store is gone: from rank 0, nothing more will be heard
            while True:
                state, count = self._state, count + 1
                self.store.set(f"{self.prefix}/{self.rank}", state if state != "alive" else f"{state} {count}")
                if state != "alive":
                    return
                self._look()
                self._wake.wait(BEAT)

    def _look(self) -> None:
        for rank in self.watched:
            key = f"{self.prefix}/{rank}"
            if rank in self.signs or self.store.check([key]):
                self.signs[rank] = self.store.get(key)
        key = f"{self.prefix}/verdict"
        if self.rank == 0 and self.verdict is not None:
            self.store.set(key, str(self.verdict))
        elif self.rank != 0 and self.store.check([key]):
            self.verdict = int(self.store.get(key))


class Watchdog:
    """See above. One a process, from `start` to `rest`."""

    def __init__(self) -> None:
        self.farewells: list[Callable[[int], object]] = []
        """What is told the exit code before the process is ended."""
        self.launched: list[subprocess.Popen[Any]] = []
        """Ranks that this process has started."""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._peers: Peers | None = None
        self._group: Any = None
        self._groups = 0

    def start(self) -> None:
        """Watch over the main thread, which must be the one that calls this."""
        if self._thread is not None or threading.current_thread() is not threading.main_thread():
            return
        self._awake = 0.0
        self._asked: dict[int, float] = {}
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._failed: float | None = None
        self._on = True
        self._signals, write = os.pipe()
        for end in (self._signals, write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # its signals are not ours
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def rest(self) -> None:
        """The main thread ends the process itself from here on."""
        with self._lock:  # who comes too late waits here for the end
            if self._thread is None:
                return
            self._on, self._thread = False, None
        signal.set_wakeup_fd(-1)

    def announce_end(self, state: str) -> None:
        """Tell the other ranks that this one is `done`, or has `failed`; it does not need them any more."""
        with self._lock:
            peers, self._peers = self._peers, None
            self._heard, self._failed = {}, None
        if peers is not None:
            peers.announce_end(state)

    def adopt(self, launched: list[subprocess.Popen[Any]]) -> None:
        """Look after ranks that Lightning starts from here. Its own observer kills this process when one fails."""
        self.launched = launched
        if self._thread is None:  # a program of somebody's own
            from lightning.fabric.strategies.launchers.subprocess_script import _launch_process_observer

            _launch_process_observer(launched)

    def end_launched(self) -> None:
        """Kill them; one that is stopped would never end."""
        for process in self.launched:
            process.kill()

    def _watch(self) -> None:
        last = time.monotonic()
        while self._on:
            if select.select([self._signals], [], [], TICK)[0]:
                for number in os.read(self._signals, 4096):
                    self._asked.setdefault(number, self._awake)
            now = time.monotonic()
            self._awake += min(now - last, 2 * TICK)
            last = now
            with self._lock:
                if not self._on:
                    return
                self._meet()
                if (end := self._stuck() or self._lost()) is not None:
                    self._end(*end)  # with the lock: nobody else ends this process meanwhile

    def _meet(self) -> None:
        """Look after the process group that there is now, if there is one."""
        group = _group()
        if group is self._group:
            return
        self._group, self._heard = group, {}
        self._peers = None
        if group is not None:
            self._peers = Peers(self._groups)
            self._groups += 1

    def _stuck(self) -> tuple[int, str] | None:
        """A signal has come, and the main thread has not begun to stop."""
        stop = signals.stop
        asked = [int(number) for number in (*signals.SIGNALS, signal.SIGINT) if number in self._asked]
        if not asked or stop.under_way or (stop.waits and self._group is None):  # alone, every step comes to its end
            return None
        if self._awake - min(self._asked[number] for number in asked) < PATIENCE + 2 * stop.longest:
            return None
        return self._stop(asked)

    def _stop(self, asked: Sequence[int]) -> tuple[int, str]:
        if asked == [signal.SIGINT]:
            return INTERRUPTED, signals.stop.exit_message
        signals.stop.received.update(number for number in asked if number != signal.SIGINT)
        return signals.requeue_and_exit_code()

    def _lost(self) -> tuple[int, str] | None:
        """Another rank is lost; a stop that was asked for before is what ends this one then."""
        if (words := self._complaint()) is None:
            return None
        if asked := [int(number) for number in signals.SIGNALS if number in self._asked]:
            return self._stop(asked)
        return USER_ERROR, f"error: {words}"

    def _complaint(self) -> str | None:
        dead = next((process for process in self.launched if process.poll()), None)
        peers = self._peers
        if peers is not None:
            for rank, sign in peers.signs.items():
                if self._heard.get(rank, (b"", 0.0))[0] != sign:
                    self._heard[rank] = sign, self._awake
        signs = {rank: sign for rank, (sign, _) in self._heard.items()}
        if dead is not None or b"failed" in signs.values():
            self._failed = self._awake if self._failed is None else self._failed
            if self._awake - self._failed < LINGER:
                return None
            killed = dead is not None and dead.returncode == -signal.SIGKILL
            hint = " (one was killed, most likely for want of memory)" if killed else ""
            return PEER_SENTENCE + hint
        silent = [
            rank
            for rank, (sign, when) in self._heard.items()
            if sign != b"done" and self._awake - when > SILENCE  # its first sign has been heard
        ]
        if peers is None or (not silent and peers.verdict is None):
            return None
        lost = silent[0] if silent else peers.verdict
        if peers.rank == 0 and silent:
            peers.condemn(silent[0])
        return (
            f"rank {lost} has given no sign of life for {SILENCE:.0f} seconds: it is stopped, or its machine hangs."
            " The same command goes on"
        )

    def _end(self, code: int, words: str) -> None:
        if words:
            print(words, file=sys.stderr, flush=True)
        goodbye = threading.Thread(target=self._say_goodbye, args=(code,), daemon=True)
        goodbye.start()
        if self._peers is not None and self._peers.rank == 0:
            time.sleep(1.5 * BEAT)  # the others read the verdict
        goodbye.join(FAREWELL)
        self.end_launched()
        leave_at_once(code)

    def _say_goodbye(self, code: int) -> None:
        for farewell in self.farewells:
            with suppress(Exception):
                farewell(code)


watchdog = Watchdog()
"""The one of this process."""


def connected() -> bool:
    """Whether this process belongs to a process group; does not import torch."""
    return _group() is not None


def disconnect() -> None:
    """Leave the process group when the work is done. After an error NCCL would wait here for the others."""
    watchdog.announce_end("done")
    if connected():
        sys.modules["torch.distributed"].destroy_process_group()


def leave_at_once(code: int) -> None:
    """End this process without asking libraries: what NCCL, W&B or multiprocessing do then may wait for ever."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def _group() -> Any:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not getattr(distributed, "is_available", bool)():
        return None
    return distributed.group.WORLD if getattr(distributed, "is_initialized", bool)() else None
