"""Processes that this one has started: they end with it, even when they are stopped (SIGSTOP)."""

import ctypes
import multiprocessing
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from esformer.throttle import Throttle

PR_SET_PDEATHSIG = 1
"""prctl's, from linux/prctl.h."""


def end_with_parent() -> None:
    """Have Linux kill this process as soon as its parent is gone; a stopped process cannot see to it itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped, by SIGSTOP or a debugger, and not been continued."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:  # it is gone, or this is not Linux
        return False


class StoppedProcesses:
    """Finds processes that stay stopped. One that was only suspended together with this one goes on at once.

    Args:
        patience: seconds for which they must have been stopped, while this process was awake.
    """

    def __init__(self, patience: int = 20) -> None:
        self.patience = patience
        self._looks: Counter[int] = Counter()
        self._throttle = Throttle(1)

    def among(self, pids: Iterable[int]) -> list[int]:
        """Those of some processes that have been stopped for so long; to be asked about every second."""
        if not self._throttle.due():
            return []
        self._looks = Counter({pid: self._looks[pid] + 1 for pid in pids if is_stopped(pid)})
        return [pid for pid, looks in self._looks.items() if looks > self.patience]


def kill_children(patience: float = 5.0) -> bool:
    """Kill what multiprocessing has started here: SIGTERM waits for ever in a stopped process, and its parent with it.

    Args:
        patience: seconds to wait for their end; what the kernel does not let go does not end.

    Returns:
        Whether all of them have ended.
    """
    children = multiprocessing.active_children()
    listens = threading.current_thread() is threading.main_thread()
    # a DataLoader's handler would raise an error, of the deaths that are wanted here
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if listens and children else None
    try:
        for child in children:
            child.kill()
        deadline = time.monotonic() + patience
        for child in children:
            child.join(max(0.0, deadline - time.monotonic()))
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
    return not any(child.is_alive() for child in children)
