"""Tells the user that a stage has ended, by a command of their own."""

import logging
import os
import subprocess

from pipelines.runtime.plan import Plan
from pipelines.runtime.run_folder import is_main

log = logging.getLogger("esformer")

PATIENCE = 10.0
"""Seconds that the command may take: a run that was told to stop has not much longer."""


def notify(plan: Plan, stage: str, state: str) -> None:
    """Run `run.notify` in a shell, which finds what happened in its environment. It never ends a run.

    Args:
        plan: of the run.
        stage: what has ended, as ESFORMER_STAGE: search, or the command that was typed, such as full.
        state: how, as ESFORMER_STATE: finished, stopped (the same command goes on) or failed.
    """
    command = plan.config.run.notify
    if command is None or not is_main():
        return
    told = {"ESFORMER_STAGE": stage, "ESFORMER_STATE": state, "ESFORMER_RUN": str(plan.run.path.resolve())}
    try:
        subprocess.run(
            command,
            shell=True,
            env=os.environ | told,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    except subprocess.TimeoutExpired:
        log.warning("run.notify=%s took more than %g seconds and was ended", command, PATIENCE)
    except subprocess.CalledProcessError as error:
        log.warning("run.notify=%s ended with exit code %d: %s", command, error.returncode, error.stderr.strip()[-200:])
    except OSError as error:
        log.warning("run.notify=%s cannot be run: %s", command, error)
