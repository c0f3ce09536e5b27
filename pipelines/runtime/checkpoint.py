"""What pipelines have in common that are given a checkpoint: where their results go, and for what images it may be."""

from pathlib import Path

from esformer.checkpoint.artifacts import WANDB
from esformer.data.datasets import LARGEST_IMAGE
from esformer.errors import ESFormerError
from esformer.export.exported import exported_kind


def check_size(height: int, width: int) -> None:
    """Refuse images for which a network would need more memory than machines have.

    Raises:
        ESFormerError: says what may be.
    """
    if max(height, width) > LARGEST_IMAGE:
        raise ESFormerError(f"the image size is {height} x {width}; it must be at most {LARGEST_IMAGE} pixels each way")


def beside(checkpoint: str, ending: str) -> Path:
    """Where results of a checkpoint or of a name go: beside it, under its name with another ending."""
    path = Path(checkpoint)
    if not path.exists():
        name, _, alias = checkpoint.rpartition(":")
        path = Path(f"{name.rpartition('/')[2]}-{alias}" if checkpoint.startswith(WANDB) else alias)
    return path.with_name(f"{path.stem if path.is_file() else path.resolve().name}{ending}")


def evaluation_of(checkpoint: str) -> Path:
    """The folder in which pipelines.evaluate leaves its results unless told otherwise.

    That of an exported file has the file's whole name, so that it is not that of the checkpoint beside it.
    """
    return Path(f"{checkpoint}-evaluation") if exported_kind(checkpoint) else beside(checkpoint, "-evaluation")
