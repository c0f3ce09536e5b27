"""Architectures of any space as they are trained: read from a file, built for images, and what they cost."""

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from esformer.benchmarks.architecture import ArchitectureError, GeneArchitecture, NetworkSettings, said_of
from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.spaces import open_to_build
from esformer.errors import ESFormerError
from esformer.files import FileError, read_json, read_yaml
from esformer.genotype import Genotype
from esformer.model.cost import Cost, cost
from esformer.proxies.macs import cost_of

AnyArchitecture = Genotype | GeneArchitecture
"""What a training can train: an ESFormer, or a network of another space."""
TOWER = "auxiliary"
"""The part of a network that helps in training alone; no evaluation, load or export has it."""


def architecture_of(content: Any) -> AnyArchitecture:
    """An architecture from plain containers, as its `to_dict` gives them: with `architecture`, of another space.

    Args:
        content: such a mapping.

    Raises:
        ESFormerError: it is neither.
    """
    if isinstance(content, Mapping) and "architecture" in content:
        return GeneArchitecture.from_dict(content)
    return Genotype.from_dict(content)


def read_architecture(path: str | os.PathLike[str]) -> AnyArchitecture:
    """A genotype file, or what a search of another space wrote. Nothing in the file is ever executed.

    Args:
        path: the file; JSON if it ends in `.json`, else YAML.

    Raises:
        ESFormerError: it cannot be read, or is neither; says what is wrong with it.
    """
    path = Path(path)
    try:
        content = (read_json if path.suffix == ".json" else read_yaml)(path)
    except FileError:
        content = None  # a genotype says it in its own words
    if not isinstance(content, Mapping) or "architecture" not in content:
        return Genotype.load(path)
    try:
        return GeneArchitecture.from_dict(content)
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}: {error}") from None


def network_for(architecture: GeneArchitecture, settings: NetworkSettings) -> nn.Module:
    """The network of an architecture, to be trained; PyTorch's global generator draws its weights.

    Args:
        architecture: of any space but the ESFormers'.
        settings: images, and what the recipe asks of the network.

    Raises:
        ESFormerError: there is no such architecture, its network cannot be built like that, or has no classifier of as
            many classes.
    """
    _check(architecture, NetworkSettings(settings.num_classes, settings.img_size))
    network, space = _build(architecture, settings), architecture.space
    paths = [part for part in network.modules() if isinstance(part, DropPath) and part.drop_prob]
    if settings.drop_path and not paths:
        raise BenchmarkError(f"networks of space {space} have no paths to drop; set recipe.drop_path=0")
    if settings.auxiliary and not isinstance(getattr(network, TOWER, None), nn.Module):
        raise BenchmarkError(f"networks of space {space} have no auxiliary tower; set recipe.auxiliary=0")
    return network


def price(architecture: AnyArchitecture, img_size: int | tuple[int, int], num_classes: int, in_chans: int = 3) -> Cost:
    """Parameters and MACs of a network as it is evaluated: of another space than the ESFormers' they are counted.

    Args:
        architecture: of any space.
        img_size: height and width in pixels.
        num_classes: of the classifier.
        in_chans: channels of the image; only ESFormers take others than 3.

    Raises:
        ESFormerError: its network cannot be built, or has no classifier of as many classes.
    """
    if isinstance(architecture, Genotype):
        return cost(architecture, img_size, num_classes, in_chans)
    side = img_size if isinstance(img_size, int) else img_size[0]
    return _count(architecture, NetworkSettings(num_classes, side))


def shapes(architecture: GeneArchitecture, img_size: int, num_classes: int) -> dict[str, Tensor]:
    """The names, shapes and types of a network's weights, on the meta device: what a file of them must hold.

    Args:
        architecture: of any space but the ESFormers'.
        img_size: height and width in pixels.
        num_classes: of the classifier.

    Raises:
        ESFormerError: its network cannot be built.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _build(architecture, NetworkSettings(num_classes, img_size)).state_dict()


def plain_network(architecture: GeneArchitecture, img_size: int, num_classes: int) -> nn.Module:
    """A network as it is evaluated, in evaluation mode, with weights that mean nothing; nobody's generator moves on.

    Args:
        architecture: of any space but the ESFormers'.
        img_size: height and width in pixels.
        num_classes: of the classifier.

    Raises:
        ESFormerError: its network cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        return _build(architecture, NetworkSettings(num_classes, img_size)).eval()


def _build(architecture: GeneArchitecture, settings: NetworkSettings) -> nn.Module:
    """The network, whatever it is; what its space cannot build is said in a sentence."""
    asked = vars(settings) | {"channels": architecture.channels, "layers": architecture.layers}
    space = open_to_build(architecture.space)
    values = space.values(architecture.notation)
    return _said(architecture, lambda: space.trained_network(values, NetworkSettings(**asked)))


def _said(architecture: GeneArchitecture, build: Callable[[], nn.Module]) -> nn.Module:
    """What our own words explain already needs no others; all else may come from somebody's space."""
    try:
        with said_of(architecture.space, architecture.notation):
            return build()
    except ESFormerError as error:
        raise error.__cause__ if isinstance(error.__cause__, ESFormerError) else error from None


@lru_cache(maxsize=64)
def _count(architecture: GeneArchitecture, settings: NetworkSettings) -> Cost:
    """By tracing the network, which takes seconds."""
    _check(architecture, settings)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        network = _build(architecture, settings)
        with said_of(architecture.space, architecture.notation):
            return cost_of(network, settings.img_size)


@lru_cache(maxsize=64)
def _check(architecture: GeneArchitecture, settings: NetworkSettings) -> None:
    """Refuse a network that cannot be built, or does not tell as many classes: one image shows it."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():  # not on the meta device of others
        network = _build(architecture, settings).eval()
        with said_of(architecture.space, architecture.notation):
            logits = network(torch.zeros(1, 3, settings.img_size, settings.img_size))
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, settings.num_classes):
        raise BenchmarkError(
            f"a network of space {architecture.space} gives {shape} for an image, and there are {settings.num_classes}"
            " classes: its classifier must have `num_classes` outputs"
        )
