"""NASWOT: how differently the activations answer to different images."""

from typing import Any, ClassVar

import torch
from torch import nn

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.gradients import forward
from esformer.proxies.prepare import initialise, is_activation, remove_norms


class NASWOT(Proxy):
    """log |det K|, where K_ij counts the activation units that are both on or both off for images i and j.

    A unit is on where the input of its activation is positive, which for a ReLU says the same as its output. The
    network has initial weights; its batch norms use the batch's statistics, or with `norms=False` all norms are off.
    """

    needs: ClassVar[Needs] = "batch"
    source: ClassVar[str] = "Neural Architecture Search without Training (ICML 2021), section 3, eq. 2 (K_H, log |K_H|)"

    def __init__(self, norms: bool = True) -> None:
        self.norms = norms
        self.name = "naswot" if norms else "naswot_without_norms"

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        assert draw.images is not None
        network = initialise(subject if self.norms else remove_norms(subject), draw)
        count = len(draw.images)
        kernel = torch.zeros(count, count, dtype=torch.float64)

        def agree(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            signs = torch.where(inputs[0] > 0, 1.0, -1.0).reshape(count, -1)
            kernel.add_((signs @ signs.t() + signs.shape[1]) / 2)  # whole numbers, exact in float32 up to 16 million

        found = [module for module in network.modules() if is_activation(module)]
        for module in found:
            module.register_forward_pre_hook(agree)  # before, for an activation may work in place
        output = forward(network, draw.images)
        if not output.isfinite().all():
            raise ProxyError(f"{self.name} is not defined here: the network's output is not finite")
        if not kernel.any():
            raise ProxyError(f"{self.name} needs a network with activation modules, and found none that runs")
        sign, logdet = torch.linalg.slogdet(kernel)
        if sign <= 0:
            raise ProxyError(f"{self.name} is not defined here: the activations answer alike to several of the images")
        return float(logdet)
