"""MeCo: how little the channels of each feature map depend on each other."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.prepare import initialise


class MeCo(Proxy):
    """The sum over layers of the smallest eigenvalue of the Pearson correlations between the layer's channels.

    One standard normal image goes in. A channel that does not vary has no correlation, which counts as 0. A feature map
    with as many channels as positions has a smallest eigenvalue of 0: wide layers count for nothing on small images.
    """

    name = "meco"
    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = (
        "MeCo: Zero-Shot NAS with One Data and Single Forward Pass via Minimum Eigenvalue of Correlation "
        "(NeurIPS 2023), section 3, eq. 9"
    )

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        network = initialise(subject, draw)
        smallest: list[Tensor] = []

        def correlate(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4:
                return
            if not output.isfinite().all():
                raise ProxyError(f"{self.name} is not defined here: a feature map is not finite")
            channels = output[0].flatten(1).double()  # C, positions
            if channels.shape[0] >= channels.shape[1]:
                smallest.append(channels.new_zeros(()))
            elif channels.shape[0] > 1:
                smallest.append(torch.linalg.eigvalsh(channels.corrcoef().nan_to_num(0.0))[0])

        for module in network.modules():
            if not len(module._modules):
                module.register_forward_hook(correlate)
        image = torch.randn(1, *draw.image_shape, dtype=self.dtype, generator=draw.generator)
        network(image.expand(2, -1, -1, -1))  # twice the same: a batch norm refuses a single value
        if not smallest:
            raise ProxyError(f"{self.name} needs a network with feature maps (B, C, H, W), and found none")
        return torch.stack(smallest).sum().item()
