"""The number of activations: what Entropic Score would be if all of them had the same entropy."""

from typing import ClassVar

import torch
from torch import nn

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.prepare import is_activation


class Activations(Proxy):
    """How many activation layers a forward goes through: N of equation 1."""

    name = "activations"
    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = (
        "Entropic Score metric: Decoupling Topology and Size in Training-free NAS, section 3.2, N of eq. 1"
    )

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        calls: list[nn.Module] = []
        for module in subject.eval().modules():
            if is_activation(module):
                module.register_forward_pre_hook(lambda module, _inputs: calls.append(module))
        subject(torch.zeros(1, *draw.image_shape, dtype=self.dtype))
        if not calls:
            raise ProxyError(f"{self.name} counts activation modules, and this network has none that runs")
        return len(calls)
