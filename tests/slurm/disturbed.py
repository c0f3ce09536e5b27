"""Python as it is on the tests' cluster: `python -m MODULE ...`, to whose job something happens at a given moment.

A moment is the name of a file in the folder PLAN, what happens the shell command in it. The first process of a job that
comes there takes the file away, runs the command, and waits until it has come to what shall disturb it.

    evaluation-15           of the search
    train-1-2               before batch 2 of epoch 1 (from 0)
    validation-1-0          before a batch of a validation
    checkpoint-1            half of the checkpoint at the end of the epoch is written
"""

import io
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

PLAN = Path(sys.argv[1])
PATIENCE = 20


def reached(moment):
    if os.environ.get("SLURM_PROCID") != "0":
        return
    try:
        command = (PLAN / moment).read_text()
        (PLAN / moment).unlink()
    except FileNotFoundError:
        return
    from pipelines.runtime.signals import stop

    sys.stdout.write(f"disturbed at {moment}\n")
    sys.stdout.flush()
    subprocess.run(command, shell=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not stop.asked and time.monotonic() < deadline:
        time.sleep(0.01)


def prepare():
    import torch

    from callbacks import checkpoints
    from callbacks.search import SearchHistory

    def before(kind, name, moment):
        method = getattr(kind, name)

        def disturbed(self, *args, **kwargs):
            reached(moment(*args))
            return method(self, *args, **kwargs)

        setattr(kind, name, disturbed)

    before(SearchHistory, "on_evaluation", lambda stage, evaluation: f"evaluation-{evaluation.evaluation}")
    before(
        checkpoints.Checkpoints,
        "on_train_batch_start",
        lambda trainer, module, batch, index: f"train-{trainer.current_epoch}-{index}",
    )
    before(
        checkpoints.Checkpoints,
        "on_validation_batch_start",
        lambda trainer, module, batch, index, *_: f"validation-{trainer.current_epoch}-{index}",
    )

    class Torch:
        """torch, but that something can happen while it saves."""

        def __getattr__(self, name):
            return getattr(torch, name)

        @staticmethod
        def save(checkpoint, file):
            whole = io.BytesIO()
            torch.save(checkpoint, whole)
            half = whole.getbuffer().nbytes // 2
            file.write(whole.getbuffer()[:half])
            file.flush()
            reached(f"checkpoint-{checkpoint['epoch']}")
            file.write(whole.getbuffer()[half:])

    checkpoints.torch = Torch()


if __name__ == "__main__":
    _, _, option, module, *arguments = sys.argv
    assert option == "-m"
    sys.path[0] = str(Path.cwd())
    if any(PLAN.iterdir()):
        prepare()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
