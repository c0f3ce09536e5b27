"""Graceful shutdown: what SIGUSR1 and SIGTERM do to a pipeline, and how its SLURM job is requeued.

A search stops at once, for its journal has everything (`callbacks.search.StopWhenAsked` sees to signals that Python
loses); a training at a batch on which all ranks agree, behind a checkpoint (`callbacks.checkpoints.Checkpoints`).

SLURM sends SIGUSR1 some minutes before the time limit (`--signal=USR1@300`) and SIGTERM (or SIGUSR1, as the cluster is
set up) when it preempts. Either stops a pipeline with what it needs to go on, and exit code 75; a batch job is then put
back into the queue, and the same command goes on where it was. Signals that come while it stops change nothing.

Lightning's own handler for this saves where the signal finds each process; under DDP they are then at different steps
and wait for each other for ever. So while training a handler here only says that a stop was asked for, and the training
loop stops when all processes have agreed at which step.
"""

import atexit
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from esformer.errors import STOPPED, ProcessLostError

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""What asks for a stop."""
RUNNING = ("RUNNING", "SIGNALING")
"""What SLURM calls a job that has not ended; the second while it is still sending a signal to it."""
LATE = 3.0
"""Seconds by which a signal may reach one process of a job later than another."""
PATIENCE = 60.0
"""Seconds to wait for SLURM's answer."""


class Stop:
    """Whether a stop was asked for, and when it takes place: at once, or when the work in hand is done.

    The handlers belong to the process that installed them. In a process forked from it (one that loads images), whose
    work this is not, SIGUSR1 does nothing and SIGTERM what it does by default: SLURM can send a signal to all
    processes of a job, not to the first one alone.
    """

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.under_way = False
        """Whether the main thread has begun to stop; until then, it may be waiting where it hears of no signal."""
        self.longest = 0.0
        """Seconds between two looks at `asked`, at most: work in hand may take so long."""
        self.goes_on = True
        """Whether the same command goes on from where this one stops; else it begins again."""
        self._looked: float | None = None
        self._process: int | None = None
        self._deferred = False
        self._over = False

    @property
    def exit_message(self) -> str:
        """What is said at the end of a stop."""
        return f"stopped; the same command {self.on_restart}"

    @property
    def on_restart(self) -> str:
        """What happens when the command is given again."""
        return "goes on from here" if self.goes_on else "begins again"

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.received)

    @property
    def waits(self) -> bool:
        """Whether a stop waits for the work in hand."""
        return self._deferred

    def look(self) -> bool:
        """The same as `asked`, for who looks again and again between two pieces of work."""
        now = time.monotonic()
        if self._looked is not None:
            self.longest = max(self.longest, now - self._looked)
        self._looked = now
        return self.asked

    def agreed(self) -> None:
        """All processes have agreed to stop; what they save may take its time."""
        self.under_way = True

    def install(self) -> None:
        """Listen from now on. May be called again when a library has put its own handlers in the place of these."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows it nowhere else
        self._over = self.under_way = False
        if self._process != os.getpid():
            atexit.register(self._ignore)  # Python's own end would let a late signal kill the process
        self._process = os.getpid()
        for number in SIGNALS:
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def disarm(self) -> None:
        """The work has come to its end, in whatever way: signals are too late from now on."""
        self._over = self.under_way = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal only sets `asked`: whoever works looks there, and stops where it can go on from.

        Raises:
            SystemExit: 75, on leaving without another exception when a stop was asked for meanwhile.
        """
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred, self._looked = before, None
        if self.asked and not before:
            self.under_way = True
            raise SystemExit(STOPPED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked process
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        first = not self.asked
        self.received.add(number)
        if first and not self._deferred and not self._over:
            self.under_way = True
            raise SystemExit(STOPPED)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C, which comes too late when the work is over."""
        if os.getpid() == self._process:
            if self._over:
                return
            self.under_way = True
        raise KeyboardInterrupt

    def _ignore(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


stop = Stop()
"""The one of this process."""


def under_slurm() -> bool:
    """Whether this process belongs to a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def is_first() -> bool:
    """Whether this is the first of the processes that do the work together, as the environment says: without torch."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0
    return int(rank) == 0 and int(os.environ.get("LOCAL_RANK") or 0) == 0


def is_shutdown_error(error: BaseException) -> bool:
    """Whether an error of this process is but the consequence of a stop.

    When a stop was asked for, processes that this one needs may end sooner than it does. Under SLURM another rank may
    have stopped before us: then our own signal has come too, or comes within moments. (A SIGTERM may as well be the
    consequence of the error: srun sends it to the other ranks when one fails. So it counts only where SLURM says that
    it preempts the job.)

    Args:
        error: what happened.
    """
    if not under_slurm():
        return stop.asked and isinstance(error, ProcessLostError)
    others = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1
    deadline = time.monotonic() + (LATE if others else 0)
    while not stop.asked and time.monotonic() < deadline:
        time.sleep(0.05)
    return stop.asked and (signal.SIGUSR1 in stop.received or _preempted(_job()))


def requeue_and_exit_code() -> tuple[int, str]:
    """What remains to be done when the work has stopped: have SLURM start the job again. Gives exit code and words.

    Only the first process ends with 75, but under torchrun. srun, and Lightning where it started the others itself, end
    the whole job as soon as a process fails, so one that is sooner done would not let the first one finish its logs and
    ask SLURM to start the job again.
    """
    if not is_first():
        return (STOPPED if "TORCHELASTIC_RUN_ID" in os.environ else 0), ""
    if not under_slurm():
        return STOPPED, stop.exit_message
    job = _job()
    running = job.get("JobState") in RUNNING
    if running and signal.SIGUSR1 not in stop.received and not _preempted(job):
        return 1, "stopped by SIGTERM, which srun sends to all tasks of a job when one of them fails; see what it says"
    if not running or job.get("BatchFlag") != "1":  # cancelled, or requeued by SLURM; no batch job
        return STOPPED, stop.exit_message
    if failure := requeue():
        return STOPPED, f"stopped; submit the same job again, for it could not be requeued ({failure})"
    return STOPPED, f"stopped; job {_job_name()} is in the queue again and {stop.on_restart}"


def requeue() -> str:
    """Have SLURM put this job into the queue again, which ends it here. Gives why it does not, or nothing."""
    return _scontrol("requeue", _job_name())[1]


def _job_name() -> str:
    """What scontrol calls this job. Of an array it must be the one task: the other number can stand for all of them."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _job() -> dict[str, str]:
    """What SLURM says of this job; nothing if it does not answer."""
    return dict(re.findall(r"(\S+?)=(\S*)", _scontrol("show", "job", "--oneliner", _job_name())[0]))


def _preempted(job: dict[str, str]) -> bool:
    return job.get("PreemptTime", "None") not in ("None", "Unknown", "")


def _scontrol(*arguments: str) -> tuple[str, str]:
    """What it prints, and what went wrong."""
    try:
        done = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    return done.stdout, " ".join(done.stderr.split()) or f"exit code {done.returncode}" if done.returncode else ""
