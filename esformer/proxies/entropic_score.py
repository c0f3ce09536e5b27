"""Entropic Score: the summed mean entropy of the normalised activations (section 3.2, equation 1)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.prepare import draw_weights, prepare

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
    of several images at once, at as many times the cost. How well each orders trained networks is in docs/results.md.

    With weights this large an attention's softmax saturates and picks one position whatever its queries and keys, so
    the genes heads and head_dim move the score no more than another seed does (measured in docs/results.md).
    """

    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = (
        "Entropic Score metric: Decoupling Topology and Size in Training-free NAS, section 3.2, eq. 1"
    )
    draws: ClassVar[int] = 3
    dtype: ClassVar[torch.dtype] = torch.float64

    def __init__(self, reading: Reading = "tensor") -> None:
        self.reading = reading
        self.name = "entropic_score" if reading == "tensor" else f"entropic_score_{reading}"

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        entropies: list[Tensor] = []
        network = prepare(subject)
        draw_weights(network, draw.generator)
        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output: entropies.append(self.entropy(output)))
            for module in network.modules()
            if isinstance(module, nn.ReLU)
        ]
        count = IMAGES if self.reading == "batch" else 1
        network(torch.rand(count, *draw.image_shape, dtype=self.dtype, generator=draw.generator) - 0.5)
        for hook in hooks:
            hook.remove()
        if not entropies:
            raise ProxyError("Entropic Score needs a network with activation modules, and found none")
        return torch.stack(entropies).sum().item()

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
