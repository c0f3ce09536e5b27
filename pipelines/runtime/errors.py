"""What PyTorch says when a process is lost that another one needs, in words for people."""

import errno
import re
import shutil
from collections.abc import Iterator

from esformer.errors import ESFormerError, ProcessLostError

SHM = "/dev/shm"
"""Shared memory: where processes that load images leave them, and where NCCL's and PyTorch's processes meet."""
NO_ROOM = r"(unable to|Error while creating) .*(</torch_|shared memory|/dev/shm)|killed by signal: Bus error"
PEER_LOST = (
    "Connection closed by peer|Connection reset by peer|Broken pipe|Connection was likely closed|remote process exited"
    "|timeout caused pair closure|Timed out waiting|[Ss]ocket [Tt]imeout|Caught collective operation timeout"
)
PEER_SENTENCE = "another process of this job is gone; see what it said. The same command goes on"


def explain(error: BaseException) -> BaseException:
    """The same error as a sentence, if it is about a process that is lost; anything else as it is."""
    if isinstance(error, ESFormerError) or not isinstance(error, (RuntimeError, OSError)):
        return error
    text = " ".join(str(one) for one in _chain(error))
    unnamed = isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None and _shm_is_full()
    if unnamed or re.search(NO_ROOM, text, re.DOTALL):
        return ESFormerError(
            f"shared memory ({SHM}{_shm_size()}) has no room left for images on their way: give it more (docker run"
            " --shm-size=16g, or --ipc=host), or try fewer data.workers"
        )
    if "DataLoader worker" in text:
        killed = re.search(r"killed by signal: ([^.\n]+)", text)
        if killed or "exited unexpectedly" in text:
            how = f"was {killed[0]}" if killed else "ended"
            memory = killed is not None and killed[1] == "Killed"
            why = ", most likely for want of memory: try fewer data.workers" if memory else "; see what it said"
            return ProcessLostError(f"a process that loads images {how}{why}. The same command goes on")
    if re.search(PEER_LOST, text):
        return ProcessLostError(PEER_SENTENCE)
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the first of them first: DataLoader says only there which signal it was."""
    if error is not None:
        yield from _chain(error.__cause__)
        yield error


def _shm_size() -> str:
    try:
        return f", {shutil.disk_usage(SHM).total / 2**20:,.0f} MiB"
    except OSError:
        return ""


def _shm_is_full() -> bool:
    try:
        return shutil.disk_usage(SHM).free < 2**20
    except OSError:
        return False
