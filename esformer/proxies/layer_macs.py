"""Where a network spends its multiply-accumulates: at which resolution, and in which kind of layer."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from esformer.proxies.base import Draw, Needs, Proxy

STRIDES = (4, 8, 16, 32)


class LayerMACs(Proxy):
    """The multiply-accumulates of one image in some of the convolutions and linear layers, as a share of all of them.

    Products within attention, norms and interpolations are left out.

    Args:
        which: `stride 4`, `stride 8`, `stride 16` or `stride 32`, layers whose output is that much smaller than the
            image in height and width, or nearer to it on a logarithmic scale than to the others (the stages of a
            hierarchical network; a stem belongs to `stride 4`); or `depthwise`, convolutions of a channel each.
    """

    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = "a count; what a proxy knows beyond cost may be no more than where the cost is"

    def __init__(self, which: str) -> None:
        self.which = which
        self.name = f"{which.replace(' ', '')}_macs"

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        height, width = draw.image_shape[1:]
        total = counted = 0

        def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
            nonlocal total, counted
            assert isinstance(layer.weight, Tensor)
            positions = output.numel() // len(layer.weight)
            macs = positions * layer.weight.numel()
            stride = math.sqrt(height * width / positions)
            depthwise = isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels
            total += macs
            counted += macs * (depthwise if self.which == "depthwise" else self.which == f"stride {_nearest(stride)}")

        for layer in subject.eval().modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(count)
        subject(torch.zeros(1, *draw.image_shape, dtype=self.dtype))
        return counted / max(total, 1)


def _nearest(stride: float) -> int:
    return min(STRIDES, key=lambda one: abs(math.log(one / stride)))
