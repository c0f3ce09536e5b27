"""Entropic Score: the summed mean entropy of the normalised activations (section 3.2, equation 1)."""

import math
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from esformer.genotype import Genotype
from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.prepare import draw_weights, prepare
from esformer.proxies.scaled import NOTHING, NotSaturatedError, ScaledNetwork
from esformer.proxies.scaled_tensor import ScaledTensor

EPSILON = 1e-12
"""The paper's small constant, too small to matter: a log a tends to 0 with a."""

IMAGES = 8
"""How many random images the reading `batch` feeds; the others feed one."""

Reading = Literal["tensor", "position", "channel", "batch"]


class EntropicScore(Proxy):
    """E = - sum over activations i of mean over elements j of a_ij log(a_ij + eps), a normalised to (0, 1].

    The paper divides an activation by "its maximum value across the channel dimension", which can be read three ways:
    the maximum is taken over the whole activation (`tensor`, the default), at each position over the channels
    (`position`), or for each channel over the positions (`channel`). A fourth, `batch`, takes it over the activations
    of several images at once, at as many times the cost. docs/results/guides.md: how well each orders networks.

    With weights this large an attention's softmax saturates and picks one position whatever its queries and keys, so
    the genes heads and head_dim move the score no more than another seed does (measured in docs/results/guides.md).
    """

    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = (
        "Entropic Score metric: Decoupling Topology and Size in Training-free NAS, section 3.2, eq. 1"
    )
    draws: ClassVar[int] = 3
    dtype: ClassVar[torch.dtype] = torch.float64
    search_img_size: ClassVar[int] = 161
    search_draws: ClassVar[int | None] = 1

    def __init__(self, reading: Reading = "tensor") -> None:
        self.reading = reading
        self.name = "entropic_score" if reading == "tensor" else f"entropic_score_{reading}"

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        network = prepare(subject)
        draw_weights(network, draw)
        images = self.images(draw)
        score = self._forward(network, images.clone())  # a network may work on its input in place
        return score if math.isfinite(score) else self._forward(network, ScaledTensor(images))

    def _forward(self, network: nn.Module, images: Tensor) -> float:
        entropies: list[Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output: entropies.append(self.entropy(output)))
            for module in network.modules()
            if isinstance(module, nn.ReLU)
        ]
        network(images)
        for hook in hooks:
            hook.remove()
        if not entropies:
            raise ProxyError("Entropic Score needs a network with activation modules, and found none")
        return torch.stack(entropies).sum().item()

    @torch.no_grad()
    def measure_genotype(self, genotype: Genotype, draw: Draw) -> float | None:
        if self.reading == "batch" or draw.weights is None:
            return None
        entropies: list[Tensor] = []
        height, width = draw.image_shape[1:]
        image = _image(draw.generator.initial_seed(), height, width, draw.device)
        network = ScaledNetwork(genotype, draw.weights, lambda values: entropies.append(self.quick_entropy(values)))
        try:
            network.features(image)
        except NotSaturatedError:
            return None
        return torch.stack(entropies).double().sum().item()

    def images(self, draw: Draw) -> Tensor:
        """Uniform noise in [-0.5, 0.5], N, C, H, W."""
        return _noise((IMAGES if self.reading == "batch" else 1, *draw.image_shape), draw.generator)

    def quick_entropy(self, values: Tensor) -> Tensor:
        """`entropy` of one activation, positions by channels, all above 0, in as few passes as can be."""
        if self.reading == "tensor":
            a, maximum = values.flatten(), values.amax()
            return (maximum.log() * a.sum() - torch.dot(a, a.log())) / (maximum * len(a))
        maximum = values.amax(1 if self.reading == "position" else 0, keepdim=True)
        a = (values / maximum.clamp_min_(NOTHING)).flatten()  # where nothing is active, of entropy 0
        return -torch.dot(a, a.log()) / len(a)

    def entropy(self, activation: Tensor) -> Tensor:
        """The mean element-wise entropy of one activation, N, C, *positions or N, C, normalised by its maximum."""
        dims = {
            "tensor": tuple(range(1, activation.ndim)),
            "position": (1,),
            "channel": tuple(range(2, activation.ndim)),
            "batch": tuple(range(activation.ndim)),
        }
        over = dims[self.reading]
        maximum = activation.amax(over, keepdim=True) if over else activation
        a = torch.where(maximum == 0, 0.0, activation / maximum)  # where nothing is active there is no information
        return -(a * (a + EPSILON).log()).mean()


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=EntropicScore.dtype, generator=generator) - 0.5


@lru_cache(maxsize=4)
def _image(seed: int, height: int, width: int, device: torch.device | str) -> Tensor:
    """The image of a draw, kept: all genotypes of a search are shown the same."""
    return _noise((3, height, width), torch.Generator().manual_seed(seed)).to(device, torch.float32)
