"""From a file or a name to a network that is ready to use."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from torch import nn

import esformer.model.registry  # noqa: F401 (timm knows the names)
from esformer.checkpoint.artifacts import WANDB, fetch
from esformer.checkpoint.content import Checkpoint, CheckpointError
from esformer.checkpoint.files import PREPARATION, open_checkpoint
from esformer.checkpoint.other_spaces import network_of_other_space
from esformer.errors import first_line
from esformer.genotype import Genotype, shipped_names
from esformer.model.weights import Weights, WeightsError, clean, fit, origin

log = logging.getLogger("esformer")

TIMM = "timm:"
RANDOM = "%s: its weights are random, of a network that was never trained"


def load(
    path_or_name: str | os.PathLike[str],
    num_classes: int | None = None,
    features_only: bool = False,
    ema: bool = True,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    **settings: Any,
) -> nn.Module:
    """A network with the weights of a file, in evaluation mode; or, by a shipped name, one with random weights.

    What differs from the file is adapted, and a warning says what: another number of classes gives a new classifier,
    random and small; other channels adapt the first convolution; another image size interpolates the attention biases.

    Args:
        path_or_name: a checkpoint of the training, a safetensors file, a folder as timm saves models, any file of
            weights alone; a name such as `esformer_s0`; `timm:efficientformerv2_s0` for timm's pretrained weights; or
            `wandb:ENTITY/PROJECT/NAME:ALIAS` for a checkpoint that Weights & Biases keeps.
        num_classes: of the classifier; 0 leaves the pooled features. None is the file's.
        features_only: give timm's wrapper that returns the outputs of the four stages, at strides 4, 8, 16 and 32. It
            takes images of any size.
        ema: the averaged weights, if the file has them; False gives the raw ones.
        in_chans: channels of the image. None is the file's.
        img_size: height and width of the image in pixels (one number: square). None is the file's.
        **settings: anything else that an ESFormer or timm's `create_model` takes, such as `drop_path_rate`.

    A network of another space than the ESFormers' is loaded as it was trained, and nothing else can be asked for.

    Raises:
        CheckpointError: there is no such file or name, or it holds no network of ours. Nothing in the file is executed.

    Examples:
        >>> backbone = load("esformer_s0", features_only=True, img_size=64)  # or the path of a checkpoint
        >>> backbone.feature_info.channels()
        [32, 48, 112, 176]
    """
    asked = {"num_classes": num_classes, "in_chans": in_chans, "img_size": img_size, **settings}
    asked = {name: value for name, value in asked.items() if value is not None}
    name = os.fspath(path_or_name)
    if name in shipped_names():
        log.warning(RANDOM, name)
        return build(Genotype.shipped(name), features_only, **asked).eval()
    return network_of(opened(name), features_only, ema, **asked)


def network_of(found: Checkpoint, features_only: bool = False, ema: bool = True, **asked: Any) -> nn.Module:
    """The network of a checkpoint with its weights, in evaluation mode; `load` says what may be asked for.

    Args:
        found: the checkpoint.
        features_only: as `load` has it.
        ema: the averaged weights, if there are any.
        **asked: as `load` has them.

    Raises:
        CheckpointError: `ema` is False, and the raw weights were not kept; or the network cannot be what is asked for.
    """
    if not isinstance(found.genotype, Genotype):
        asked |= {"features_only": True} if features_only else {}
        network = network_of_other_space(found, ema, asked)
        network.pretrained_cfg = _settings(found, {})["pretrained_cfg_overlay"] | {"input_size": (3, *found.img_size)}
        return network
    network = build(found.genotype, features_only, **_settings(found, asked))
    install(found, network, ema)
    return network.eval()


def build(genotype: Genotype, features_only: bool = False, **settings: Any) -> nn.Module:
    """The network of a genotype as timm makes its models, so that all of timm's tools know it; random weights.

    Args:
        genotype: the architecture.
        features_only: as `load` has it.
        **settings: of an ESFormer or of timm's `create_model`.
    """
    name = f"esformer_{genotype.space.partition('-')[0].lower()}"
    settings |= {"features_only": True} if features_only else {}
    network: nn.Module = timm.create_model(name, genotype=genotype.to_dict(), **settings)
    return network


def install(found: Checkpoint, network: nn.Module, ema: bool = True) -> None:
    """Put the weights of a checkpoint into a network of its genotype; a warning says what had to be adapted.

    Args:
        found: the checkpoint.
        network: takes the weights.
        ema: the averaged weights, if there are any.

    Raises:
        CheckpointError: the network is another one.
    """
    weights, told = fitted(found, network, ema)
    if told:
        log.warning("%s: %s", found.path, "; ".join(told))
    network.load_state_dict(weights)


def fitted(found: Checkpoint, network: nn.Module, ema: bool = True) -> tuple[Weights, list[str]]:
    """Weights of a checkpoint for a network of its genotype, and in words what had to be adapted.

    Args:
        found: the checkpoint.
        network: whose weights are wanted.
        ema: the averaged weights, if there are any.

    Raises:
        CheckpointError: the network is another one.
    """
    try:
        return fit(found.weights(ema), network, found.img_size)
    except WeightsError as error:
        raise CheckpointError(f"{found.path}: {error}") from None


def find(name: str) -> Checkpoint:
    """The trained weights of a file or folder, of timm's (`timm:efficientformerv2_s0`), or that W&B keeps (`wandb:`).

    Args:
        name: a path, or a name.

    Raises:
        CheckpointError: there are none, or they are of no ESFormer.
    """
    if name in shipped_names():
        raise CheckpointError(f"{name} is an architecture without trained weights")
    if name.startswith(WANDB):
        return open_checkpoint(fetch(name.removeprefix(WANDB)))
    return _of_timm(name.removeprefix(TIMM)) if name.startswith(TIMM) else open_file(name)


def opened(name: str) -> Checkpoint:
    """What `load` finds by a name, with its weights; a warning tells of random ones.

    Args:
        name: a path, or a name.

    Raises:
        CheckpointError: there is nothing, or it holds no ESFormer.
    """
    found = _untrained(name) if name in shipped_names() else find(name)
    if found.random:
        log.warning(RANDOM, name)
    return found


def _untrained(name: str) -> Checkpoint:
    """The random weights of an architecture by its name."""
    network: Any = build(Genotype.shipped(name))
    shape = (network.genotype, network.num_classes, network.in_chans, network.img_size)
    return Checkpoint(Path(name), *shape, network.state_dict(), None, random=True)


def open_file(name: str) -> Checkpoint:
    """A file or folder by its path, which may be meant to be a name.

    Raises:
        CheckpointError: there is none, or it holds no ESFormer.
    """
    if not name or not Path(name).exists():
        names = ", ".join(shipped_names())
        raise CheckpointError(
            f"{name or 'an empty name'} is neither a file nor one of {names},"
            " nor timm's, such as timm:efficientformerv2_s0, nor W&B's, such as wandb:me/esformer/checkpoint-ID:best"
        )
    return open_checkpoint(name)


def _settings(found: Checkpoint, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's `create_model` is to know: the network, and how its images are prepared."""
    own = dict(num_classes=found.num_classes, in_chans=found.in_chans, img_size=found.img_size)
    network: dict[str, Any] = {**own, **asked}
    cfg = {word: found.data[word] for word in PREPARATION if word in found.data}
    cfg["num_classes"] = network["num_classes"]
    if found.data.get("classes") and network["num_classes"] == found.num_classes:
        cfg["label_names"] = tuple(found.data["classes"])
    return network | {"pretrained_cfg_overlay": cfg}


def _of_timm(name: str) -> Checkpoint:
    """Timm's pretrained weights of an EfficientFormerV2, from its cache or from the hub."""
    known = [one for one in shipped_names() if not one.startswith("esformer_")]
    if name.partition(".")[0] not in known:
        raise CheckpointError(f"{TIMM}{name} is none of {', '.join(TIMM + one for one in known)}")
    try:
        _reach(timm.get_pretrained_cfg(name, allow_unregistered=False).hf_hub_id)
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # of the network, of the hub, of timm
        raise CheckpointError(f"timm could not load the weights of {name}: {first_line(error)}") from None
    weights = clean(network.state_dict())
    told = origin(weights)
    cfg = network.pretrained_cfg
    size = tuple(cfg["input_size"][1:])
    data = {word: cfg[word] for word in PREPARATION}
    return Checkpoint(
        Path(f"{TIMM}{name}"), told.genotype, told.num_classes, told.in_chans, size, weights, None, data=data
    )


def _reach(repository: str) -> None:
    """Fail at once where there is no way to weights; timm would try for a minute."""
    file = "model.safetensors"
    if not isinstance(try_to_load_from_cache(repository, file), str):
        get_hf_file_metadata(hf_hub_url(repository, file))
