"""LogSynflow: Synflow with the gradients' logarithm (FreeREA; the size metric of section 3.3)."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from esformer.genotype import Genotype
from esformer.proxies.base import Draw
from esformer.proxies.scaled import NotSaturatedError, ScaledNetwork
from esformer.proxies.synflow import Synflow

LARGE = 60.0
"""From this logarithm of the gradients' scale on, 1 is nothing beside a gradient, if that is not 0."""


class LogSynflow(Synflow):
    """S = sum over weights of |w log(1 + |dR/dw|)|, where R is the sum of the outputs for an input of ones.

    The network is prepared as for Entropic Score. Gradients are then non-negative but for those through a softmax, of
    which the magnitude counts. A saturated softmax passes none at all, so queries and keys add nothing, and of
    heads and head_dim only the product counts, through the values (measured in docs/results.md).
    """

    name = "log_synflow"
    source: ClassVar[str] = "FreeREA: Training-Free Evolution-based Architecture Search (WACV 2023), section 3.2"

    search_img_size: ClassVar[int] = 64
    search_draws: ClassVar[int | None] = 1

    def measure_genotype(self, genotype: Genotype, draw: Draw) -> float | None:
        if draw.streams is None:
            return None
        network = ScaledNetwork(genotype, draw.streams)
        try:
            with torch.enable_grad():
                output, log_scale = network.output(torch.ones(draw.image_shape, device=draw.device))
        except NotSaturatedError:
            return None
        gradients = torch.autograd.grad(output, [weight.magnitude for weight in network.weights])
        flows = [
            math.exp(weight.log_std) * torch.dot(weight.magnitude.detach().flatten(), _log1p(gradient.flatten(), scale))
            for weight, gradient in zip(network.weights, gradients, strict=True)
            # the gradient of a weight w = magnitude * std is this one's divided by std
            for scale in [log_scale - weight.log_std]
        ]
        return torch.stack(flows).double().sum().item()

    def flow(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient.abs().log1p()).abs()


def _log1p(gradient: Tensor, log_scale: float) -> Tensor:
    """log(1 + gradient * exp(log_scale)), whatever the scale; overwrites the gradient."""
    if log_scale < LARGE:
        return gradient.mul_(math.exp(log_scale)).log1p_()
    smallest = torch.finfo(gradient.dtype).tiny
    dead = gradient < smallest if gradient.amin() < smallest else None  # taps of a kernel that see padding only
    logarithm = gradient.clamp_min_(smallest).log_().add_(log_scale)
    return logarithm if dead is None else logarithm.masked_fill_(dead, 0)
