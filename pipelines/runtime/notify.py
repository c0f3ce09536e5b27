"""Tells the user that a stage has ended, by a command of their own."""

import logging
import os
import signal
import subprocess
from contextlib import suppress

from pipelines.runtime.logs import is_main
from pipelines.runtime.plan import Plan

log = logging.getLogger("esformer")

PATIENCE = 10.0
"""Seconds that the command may take: a run that was told to stop has not much longer."""


def notify(plan: Plan, stage: str, state: str) -> None:
    """Run `run.notify` in a shell, which finds what happened in its environment. It never ends a run, and says nothing.

    Args:
        plan: of the run.
        stage: what has ended, as ESFORMER_STAGE: search, or the command that was typed, such as full.
        state: how, as ESFORMER_STATE: finished, stopped (the same command goes on) or failed.
    """
    command = plan.config.run.notify
    if command is None or not is_main():
        return
    told = {"ESFORMER_STAGE": stage, "ESFORMER_STATE": state, "ESFORMER_RUN": str(plan.run.path.resolve())}
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, shell=True, env=os.environ | told, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
    except OSError as error:
        log.warning("run.notify=%s cannot be run: %s", command, error)
        return
    try:
        if code := process.wait(PATIENCE):
            log.warning("run.notify=%s ended with exit code %d", command, code)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
        process.wait()
        log.warning("run.notify=%s took more than %g seconds and was ended", command, PATIENCE)
