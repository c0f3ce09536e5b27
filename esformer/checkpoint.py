"""From a file or a name to a network that is ready to use."""

import os
from pathlib import Path
from typing import Any

import torch
from timm.models._features import FeatureListNet
from torch import nn

from esformer.errors import ESFormerError
from esformer.genotype import Genotype, shipped_names
from esformer.model.esformer import ESFormer


class CheckpointError(ESFormerError):
    """A file that holds no ESFormer; says why."""


def load(
    path_or_name: str | os.PathLike[str],
    num_classes: int | None = None,
    features_only: bool = False,
    ema: bool = True,
) -> nn.Module:
    """A network from a checkpoint of this project, in evaluation mode; or, by a shipped name, one with random weights.

    Args:
        path_or_name: a `.ckpt` file that training wrote, or a name such as `esformer_s0`.
        num_classes: another number of classes than the checkpoint's gives a new, random classifier.
        features_only: give timm's wrapper that returns the outputs of the four stages, at strides 4, 8, 16 and 32.
        ema: the averaged weights, if the checkpoint has them; False gives the raw ones.

    Raises:
        CheckpointError: there is no such file or name, or it holds no ESFormer. Nothing in the file is executed.
    """
    if str(path_or_name) in shipped_names():
        network = ESFormer(Genotype.shipped(str(path_or_name)))
    elif Path(path_or_name).is_file():
        network = _network(Path(path_or_name), ema)
    else:
        raise CheckpointError(f"{path_or_name} is neither a file nor one of {', '.join(shipped_names())}")
    if num_classes is not None and num_classes != network.num_classes:
        network.reset_classifier(num_classes)
    network.eval()
    return FeatureListNet(network, out_indices=(0, 1, 2, 3), flatten_sequential=True) if features_only else network


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that training wrote, without executing anything in it.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise CheckpointError(f"{path} is damaged, or is no file of weights and settings alone") from None
    settings = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(settings, dict) or not {"genotype", "num_classes", "img_size"} <= settings.keys():
        raise CheckpointError(f"{path} is not a checkpoint of an ESFormer's training")
    return checkpoint


def _network(path: Path, ema: bool) -> ESFormer:
    checkpoint = read(path)
    settings = checkpoint["hyper_parameters"]
    try:
        genotype = Genotype.from_dict(settings["genotype"])
        network = ESFormer(genotype, settings["num_classes"], img_size=settings["img_size"])
        raw = checkpoint["state_dict"]
        raw = {name.removeprefix("model."): value for name, value in raw.items() if name.startswith("model.")}
        network.load_state_dict(checkpoint.get("state_dict_ema", raw) if ema else raw)
    except (KeyError, TypeError, AttributeError, RuntimeError, ESFormerError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} holds no weights of the network that it describes: {reason}") from None
    return network
