"""From a file or a name to a network that is ready to use."""

import os
from pathlib import Path
from typing import Any

import torch

from esformer.errors import ESFormerError
from esformer.genotype import Genotype, shipped_names
from esformer.model.esformer import ESFormer


class CheckpointError(ESFormerError):
    """A file that holds no ESFormer; says why."""


def load(path_or_name: str | os.PathLike[str], num_classes: int | None = None, ema: bool = True) -> ESFormer:
    """A network from a checkpoint of this project, in evaluation mode; or, by a shipped name, one with random weights.

    Args:
        path_or_name: a `.ckpt` file that training wrote, or a name such as `esformer_s0`.
        num_classes: another number of classes than the checkpoint's gives a new, random classifier.
        ema: the averaged weights, if the checkpoint has them; False gives the raw ones.

    Raises:
        CheckpointError: there is no such file or name, or it holds no ESFormer. Nothing in the file is executed.
    """
    if str(path_or_name) in shipped_names():
        genotype = Genotype.shipped(str(path_or_name))
        return ESFormer(genotype, num_classes=1000 if num_classes is None else num_classes).eval()
    path = Path(path_or_name)
    if not path.is_file():
        raise CheckpointError(f"{path} is neither a file nor one of {', '.join(shipped_names())}")
    checkpoint = _read(path)
    settings = checkpoint["hyper_parameters"]
    genotype = Genotype.from_dict(settings["genotype"])
    network = ESFormer(genotype, settings["num_classes"], img_size=settings["img_size"])
    weights = checkpoint.get("ema_state_dict") if ema else None
    prefix = "model."
    raw = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    network.load_state_dict(raw if weights is None else weights)
    if num_classes is not None and num_classes != network.num_classes:
        network.reset_classifier(num_classes)
    return network.eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from None
    if not isinstance(checkpoint, dict) or "genotype" not in checkpoint.get("hyper_parameters", {}):
        raise CheckpointError(f"{path} is a checkpoint, but not one of an ESFormer's training")
    return checkpoint
