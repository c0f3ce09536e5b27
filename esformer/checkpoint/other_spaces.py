"""Weights of networks of other spaces than the ESFormers': what a file must hold, and the network with them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from esformer.benchmarks.architecture import GeneArchitecture
from esformer.benchmarks.trained import TOWER, plain_network, shapes
from esformer.checkpoint.content import Checkpoint, CheckpointError
from esformer.data.base import MOST_CLASSES
from esformer.model.weights import Weights, WeightsError, check_sound


def fitting(weights: Mapping[str, Any], architecture: GeneArchitecture, img_size: int, num_classes: Any) -> Weights:
    """The weights of a file, which must be those of the architecture, without what only a training needs.

    Args:
        weights: by their names in the network.
        architecture: that the file says they are of.
        img_size: of the images, likewise.
        num_classes: of the classifier, likewise.

    Raises:
        ESFormerError: there is no such network, or a weight is missing, of another shape, or one too many.
    """
    if type(num_classes) is not int or not 1 <= num_classes <= MOST_CLASSES:
        raise WeightsError(f"num_classes is {str(num_classes)[:40]}; it must be from 1 to {MOST_CLASSES:,}")
    check_sound(weights, f"a network of space {architecture.space}")
    wanted = shapes(architecture, img_size, num_classes)
    kept = {name: value for name, value in weights.items() if name in wanted or not name.startswith(f"{TOWER}.")}
    for name in dict.fromkeys([*wanted, *kept]):
        found, like = (_shape(part.get(name)) for part in (kept, wanted))
        if found != like:
            raise WeightsError(
                f"{name[:100]} is {found} in it, and {like} in a network of space {architecture.space} as it says"
            )
    return kept


def _shape(value: Tensor | None) -> str:
    return "missing" if value is None else f"of shape {tuple(value.shape)}"


def network_of_other_space(found: Checkpoint, ema: bool, asked: Mapping[str, Any]) -> nn.Module:
    """The network of a checkpoint with its weights, in evaluation mode, as it was trained.

    It is a plain module that answers what tools ask: `genotype`, `num_classes`, `in_chans`, `img_size` and
    `pretrained_cfg`, as timm's models do.

    Args:
        found: the checkpoint.
        ema: the averaged weights, if there are any.
        asked: what it should be otherwise, such as `img_size`.

    Raises:
        CheckpointError: it should be otherwise.
    """
    architecture, size = found.genotype, found.img_size
    assert isinstance(architecture, GeneArchitecture)
    own = {"num_classes": found.num_classes, "in_chans": found.in_chans, "img_size": size}
    for name, value in asked.items():
        same = [value] * 2 == list(size) if name == "img_size" and isinstance(value, int) else value == own.get(name)
        if name not in own or not same:
            raise CheckpointError(
                f"{found.path} holds a network of space {architecture.space}, which is loaded as it was trained:"
                f" leave {name} out"
            )
    network = plain_network(architecture, size[0], found.num_classes)
    network.load_state_dict(found.weights(ema))
    facts: dict[str, Any] = {"genotype": architecture, **own}
    for name, value in facts.items():
        setattr(network, name, value)
    return network
