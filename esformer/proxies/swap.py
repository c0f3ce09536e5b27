"""SWAP: how many ways there are in which the units of a network answer to a batch of images."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.gradients import forward
from esformer.proxies.prepare import initialise, is_activation

BITS = 62
"""Images that one number tells apart."""


class SWAP(Proxy):
    """The number of distinct sample-wise activation patterns.

    A unit's pattern says for which images of the batch it is on; the score is the cardinality of the set of patterns
    of all units. As for `naswot`, a unit is on where the input of its activation is positive. The paper's
    regularisation by size is not applied. There are at most 2^B patterns for B images, and most networks show them all
    if B is 8: give 32 images, as the paper does, or more.
    """

    name = "swap"
    needs: ClassVar[Needs] = "batch"
    source: ClassVar[str] = (
        "SWAP-NAS: Sample-Wise Activation Patterns for Ultra-fast NAS (ICLR 2024), section 3.2, definitions 3.2 and 3.3"
    )

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        assert draw.images is not None
        network, count = initialise(subject, draw), len(draw.images)
        patterns: list[Tensor] = []

        def answer(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            on = (inputs[0] > 0).reshape(count, -1).long()  # B, units
            codes = [(bits << torch.arange(len(bits))[:, None]).sum(0) for bits in on.split(BITS)]
            patterns.append(_distinct(torch.stack(codes, 1)))

        for module in network.modules():
            if is_activation(module):
                module.register_forward_pre_hook(answer)
        if not forward(network, draw.images).isfinite().all():
            raise ProxyError(f"{self.name} is not defined here: the network's output is not finite")
        if not patterns:
            raise ProxyError(f"{self.name} needs a network with activation modules, and found none that runs")
        return len(_distinct(torch.cat(patterns)))


def _distinct(codes: Tensor) -> Tensor:
    """The distinct rows of a matrix of numbers, patterns by codes."""
    distinct: Tensor = codes.unique()[:, None] if codes.shape[1] == 1 else codes.unique(dim=0)
    return distinct
