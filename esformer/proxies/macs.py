"""Multiply-accumulates of one image, as fvcore counts them."""

import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn

from esformer.genotype import Genotype
from esformer.model.cost import Cost, cost
from esformer.proxies.base import Draw, Needs, Proxy


class MACs(Proxy):
    """How many multiply-accumulates one image takes."""

    name = "macs"
    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = "a count, by fvcore's rules, as in Table 3 of the Entropic Score paper"

    def measure(self, subject: nn.Module, draw: Draw) -> float:
        return count_macs(subject, torch.zeros(1, *draw.image_shape, dtype=self.dtype))

    def measure_genotype(self, genotype: Genotype, draw: Draw) -> float:
        return cost(genotype, draw.image_shape[1:]).macs


def count_macs(network: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of a network, by fvcore's rules; leaves the network in evaluation mode.

    Args:
        network: takes the image.
        image: 1, 3, H, W.
    """
    with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # it scripts losses that nobody asks for
        from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(network.eval(), image).unsupported_ops_warnings(False)
    total: int = analysis.uncalled_modules_warnings(False).total()
    return total


def cost_of(network: nn.Module, img_size: int) -> Cost:
    """Parameters of any network, and MACs of one image, by tracing it.

    Args:
        network: takes B, 3, H, W.
        img_size: height and width of the image in pixels.
    """
    params = sum(parameter.numel() for parameter in network.parameters())
    return Cost(params, count_macs(network, torch.zeros(1, 3, img_size, img_size)))
