"""Processes of the pipelines that start in a few hundredths of a second.

`python -m pipelines...` spends five to ten seconds of a busy core on importing torch, Lightning and W&B. Here a server,
started once a session (multiprocessing's "forkserver"), has imported them and forks whoever is asked for. It computes
nothing and has no threads, so a child differs from a fresh process in its parent and its hash seed only: it has a
session, an environment, a working directory, arguments, signals and random states of its own.
`test_full.py` runs a really cold process.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

TESTS = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = [
    "callbacks.search",
    "matplotlib.backends.backend_agg",
    "pipelines.runtime.build",
    "sklearn.datasets",
    "sklearn.model_selection",
    "timm.models",
    "torch._dynamo",  # the first step of an optimiser asks for it
    "wandb.sdk.launch.inputs.internal",  # as wandb.init does
]


class Process:
    """Has what the tests use of `subprocess.Popen`; what it prints on both streams is kept in a file.

    Args:
        command: a module or a script's path, and its arguments; a connection becomes the number of its descriptor.
        env: the whole environment.
        cwd: where it runs.
    """

    def __init__(self, command: Sequence[object], env: dict[str, str], cwd: Path) -> None:
        self.args = [word if isinstance(word, Connection) else str(word) for word in command]
        self._printed = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._process = CONTEXT.Process(target=_become, args=(self.args, env, str(cwd), self._printed.name))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return Path(self._printed.name).read_text()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0, self.output)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self.output, None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def finish(self, code: int = 0, timeout: float = 240) -> str:
        """Wait for its end; gives what it printed."""
        assert self.wait(timeout) == code, self.output[-5000:]
        return self.output


class Warm:
    """Starts processes, and ends those that a test leaves."""

    def __init__(self) -> None:
        _serve()
        self._started: list[Process] = []

    def start(self, command: Sequence[object], cwd: Path | str = ".", env: dict[str, str] | None = None) -> Process:
        """`python -m MODULE ...` or `python SCRIPT.py ...`, with `env` added to the environment."""
        path = os.pathsep.join(filter(None, (str(TESTS.parent), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | (env or {})
        self._started.append(Process(command, environment, Path(cwd).resolve()))
        return self._started[-1]

    def start_ranks(
        self, ranks: int, command: Sequence[object], cwd: Path | str = ".", env: dict[str, str] | None = None
    ) -> list[Process]:
        """The same as `torchrun --nproc-per-node` starts it, but that nobody looks after the ranks."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "warm", "GROUP_RANK": 0}
        shared |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        numbers = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)]
        return [
            self.start(command, cwd, (env or {}) | {key: str(value) for key, value in own.items()}) for own in numbers
        ]

    def popen(self, command: Sequence[str], env: dict[str, str], pass_fds: Sequence[int], **_: object) -> Process:
        """In place of `subprocess.Popen` where that starts `python -m MODULE ...` with open descriptors."""
        _, _, *words = command
        with ExitStack() as given:
            opened = {str(fd): given.enter_context(Connection(os.dup(fd))) for fd in pass_fds}
            self._started.append(Process([opened.get(word, word) for word in words], env, Path.cwd()))
        return self._started[-1]

    def end(self) -> None:
        """Kill whatever still runs, with its workers."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._started.clear()


def _serve() -> None:
    """Start the server, if there is none."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONPATH")}
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    try:
        forkserver.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _become(command: list[str | Connection], env: dict[str, str], cwd: str, printed: str) -> None:
    """In the child: be the process that the command asks for."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
    for path, mode, streams in (os.devnull, os.O_RDONLY, (0,)), (printed, os.O_WRONLY | os.O_APPEND, (1, 2)):
        file = os.open(path, mode)
        for stream in streams:
            os.dup2(file, stream)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    _forget()
    what, *_ = sys.argv = [str(os.dup(w.fileno())) if isinstance(w, Connection) else w for w in command]
    script = what.endswith(".py")
    first = str(Path(what).parent) if script else cwd
    others = [path for path in sys.path if not Path(path).is_relative_to(TESTS)]  # without what pytest added
    sys.path[:] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *others]
    sys.modules.pop(what, None)  # else runpy warns
    try:
        if script:
            runpy.run_path(what, run_name="__main__")
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def _forget() -> None:
    """What a process learns from its environment when it imports, and what a fork shares with its siblings."""
    import numpy as np
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0
    np.random.seed()  # noqa: NPY002
    multiprocessing.set_start_method(None, force=True)  # else loaders of images would be forked by the server
    multiprocessing.process._parent_process = None
    multiprocessing.current_process().name = "MainProcess"
