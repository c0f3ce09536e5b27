"""Synflow: the flow of signal through the weights of a network that only adds."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.gradients import by_weights, forward
from esformer.proxies.prepare import draw_weights, prepare
from esformer.proxies.scaled_tensor import ScaledTensor


class Synflow(Proxy):
    """S = sum over weights of |w dR/dw|, where R is the sum of the outputs for an input of ones.

    The network is prepared as for Entropic Score (FreeREA's way, which LogSynflow shares), so every summand is
    non-negative but for those behind a softmax. Where float64 does not hold the gradients they are computed as
    `ScaledTensor`; a sum that float64 does not hold is refused, and has a LogSynflow all the same.
    """

    name = "synflow"
    needs: ClassVar[Needs] = "gradient"
    source: ClassVar[str] = (
        "Pruning neural networks without any data by iteratively conserving synaptic flow (NeurIPS 2020), section 5; "
        "summed over the network as in Zero-Cost Proxies for Lightweight NAS (ICLR 2021), section 3.2"
    )
    draws: ClassVar[int] = 3
    dtype: ClassVar[torch.dtype] = torch.float64

    def measure(self, subject: nn.Module, draw: Draw) -> float:
        network = prepare(subject)
        draw_weights(network, draw)
        images = torch.ones(1, *draw.image_shape, dtype=self.dtype)
        score = self._total(network, images.clone()).item()  # a network may work on its input in place
        if math.isfinite(score):
            return score
        total = self._total(network, ScaledTensor(images))
        score = total.item()
        if isinstance(total, ScaledTensor) and math.isinf(score) and total.mantissa.isfinite():
            raise ProxyError(
                f"{self.name} of this network is about 10^{total.exponent * math.log10(2):.0f}, beyond float64's range;"
                " take log_synflow, which adds logarithms"
            )
        return score

    def _total(self, network: nn.Module, images: Tensor) -> Tensor:
        output = forward(network, images)
        return torch.stack([self.flow(w, g).sum() for w, g in by_weights(output, network)]).sum()

    def flow(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What each weight adds to the score."""
        return (weight * gradient).abs()
