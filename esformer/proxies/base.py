"""The contract that every proxy keeps: a training-free metric says what it needs, and where it is defined."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.proxies.cached_weights import CachedWeights
from esformer.topology import Topology

Subject = Genotype | Topology | nn.Module
"""What can be scored."""

Needs = Literal["genotype", "forward", "gradient", "batch"]


class ProxyError(ESFormerError):
    """A network that a proxy cannot score; says why."""


@dataclass(frozen=True)
class Draw:
    """What one measurement may use besides the network: its randomness and its images.

    Args:
        generator: the source of randomness, seeded by what is scored.
        image_shape: channels, height and width of one image.
        images: a batch of real images, B, C, H, W, for proxies that need one.
        labels: their classes, B.
        weights: where the weights come from, if not from the generator: so it is for a genotype.
        device: where to compute, for proxies that can choose.
    """

    generator: torch.Generator
    image_shape: tuple[int, int, int]
    images: Tensor | None = None
    labels: Tensor | None = None
    weights: CachedWeights | None = None
    device: torch.device | str = "cpu"


class Proxy(ABC):
    """A training-free metric of an architecture.

    `esformer.score` does what all proxies share: it copies or builds the network, seeds a `Draw` from what is scored,
    takes the mean over `draws` measurements and refuses a score that is not finite. A proxy only measures.
    """

    name: str
    """What it is called in configurations, journals and tables."""
    needs: ClassVar[Needs]
    """The most expensive thing it uses: only the genotype (or a topology), a forward, a gradient, or a batch of images
    with labels."""
    higher_is_better: ClassVar[bool] = True
    source: ClassVar[str]
    """Paper, section and equation."""
    draws: ClassVar[int] = 1
    """How many measurements, each with new random weights and inputs, a score is the mean of."""
    dtype: ClassVar[torch.dtype] = torch.float32
    """Of the network, and so of the images; float64 where values explode because norms are off."""
    search_img_size: ClassVar[int] = 224
    """Pixels of the smallest input that is known to rank genotypes as 224 does (docs/results); for searches."""
    search_draws: ClassVar[int | None] = None
    """The draws that a search can do with at that size; None for all of `draws`."""

    @abstractmethod
    def measure(self, subject: Any, draw: Draw) -> float:
        """One measurement. `subject` is a network that the proxy may change, or what was given if it needs no network.

        The next draw measures the same network as this one left it, so whatever is random must be drawn anew.

        Raises:
            ProxyError: the subject cannot be scored.
        """

    def measure_genotype(self, genotype: Genotype, draw: Draw) -> float | None:
        """What `measure` finds on the genotype's network, within 1e-4 of it, without building that network.

        None if this proxy, or this genotype, knows no such short cut.
        """
        return None
