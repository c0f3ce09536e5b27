"""Zen-Score: the expected Gaussian complexity of a network, made independent of batch norms."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.prepare import initialise, remove_norms, weights

BATCH, STEP = 16, 1e-2
"""The authors' batch size, and alpha, how far the second input lies from the first."""


class ZenScore(Proxy):
    """log mean |f(x) - f(x + a e)| summed over f's outputs, plus the log of each batch norm's mean deviation.

    f is the network up to its last feature map; x, e and all weights are standard normal. Batch norms use the batch's
    statistics, and what they divide by is put back: log sqrt of the variance's mean over channels. With `norms=False`
    all norms are off, in float64, which is the paper's Phi-score with finite differences (section 3.1, definition 1).
    """

    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = "Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition (ICCV 2021), algorithm 1"

    def __init__(self, norms: bool = True) -> None:
        self.norms = norms
        self.name = "zen_score" if norms else "zen_score_without_norms"
        self.dtype = torch.float32 if norms else torch.float64  # type: ignore[misc]

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        network = initialise(subject if self.norms else remove_norms(subject), draw)
        for weight in weights(network).values():
            weight.normal_(generator=draw.generator)
        scales: list[Tensor] = []
        maps: list[Tensor] = []

        def scale(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].double()
            variance = x.var([0, *range(2, x.ndim)], unbiased=False).mean()
            if variance > 0:  # else the norm stands on a dead branch, and scales nothing
                scales.append(variance.sqrt().log())

        def feature_map(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
                maps[:] = [output]

        hooks = [m.register_forward_pre_hook(scale) for m in network.modules() if isinstance(m, _BatchNorm)]
        for module in network.modules():
            module.register_forward_hook(feature_map)
        x, e = (torch.randn(BATCH, *draw.image_shape, dtype=self.dtype, generator=draw.generator) for _ in range(2))
        network(x)
        if not maps:
            raise ProxyError(f"{self.name} needs a network with feature maps (B, C, H, W), and found none")
        for hook in hooks:  # the deviations of the first input count
            hook.remove()
        first = maps[0].clone()
        network(x + STEP * e)
        difference = (maps[0] - first).abs().double().sum() / BATCH
        if difference == 0:
            raise ProxyError(f"{self.name} is not defined here: the last feature map does not depend on the input")
        return (difference.log() + sum(scales)).item()
