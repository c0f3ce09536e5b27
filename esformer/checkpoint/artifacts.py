"""Checkpoints that Weights & Biases keeps, by names such as `wandb:me/esformer/checkpoint-1a2b3c4d:best`.

Runs with `wandb.checkpoints=true` send them there.
"""

import re
from pathlib import Path

from esformer.checkpoint.content import CheckpointError
from esformer.errors import first_line

WANDB = "wandb:"
WEIGHTS = (".ckpt", ".safetensors", ".pth", ".bin")
"""How files of weights end."""
UNREACHED = ("credentials", "API request", "service process")
"""Words of W&B's client that say as well that no server answered."""


def fetch(name: str) -> Path:
    """The file of weights in an artifact; what was fetched before is not fetched again (W&B's cache).

    Args:
        name: ENTITY/PROJECT/NAME:ALIAS, where an alias is `best`, `last`, `latest` or a version such as `v3`.

    Raises:
        CheckpointError: there is none, W&B cannot be reached, or the artifact does not hold one file of weights.
    """
    import wandb

    if not re.fullmatch(r"[^/:]+/[^/:]+/[^/:]+(:[^/:]+)?", name):
        raise CheckpointError(f"{WANDB}{name} is no artifact; write {WANDB}ENTITY/PROJECT/NAME:ALIAS, such as ...:best")
    try:
        folder = Path(wandb.Api().artifact(name).download())
    except (wandb.Error, OSError, ValueError) as error:
        raise CheckpointError(f"{WANDB}{name} cannot be fetched: {reason_of(error)}") from None
    files = sorted(path for path in folder.rglob("*") if path.suffix in WEIGHTS)
    if len(files) != 1:
        there = ", ".join(path.name for path in files) or "none"
        raise CheckpointError(f"{WANDB}{name} must hold one file of weights; it has {there}")
    return files[0]


def reason_of(error: BaseException) -> str:
    """Why W&B failed, in a line.

    Args:
        error: of its client.
    """
    line = first_line(error)
    return f"{line} (or no server answers: is there a network?)" if any(word in line for word in UNREACHED) else line
