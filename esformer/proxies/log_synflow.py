"""LogSynflow: Synflow with the gradients' logarithm (FreeREA; the size metric of section 3.3)."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from esformer.genotype import Genotype
from esformer.proxies.base import Draw
from esformer.proxies.scaled import NotSaturatedError, ScaledNetwork, Weight
from esformer.proxies.synflow import Synflow

LARGE = 60.0
"""From this logarithm of the gradients' scale on, 1 is nothing beside a gradient, if that is not 0."""
SMALLEST = torch.finfo(torch.float32).tiny
"""Below this a gradient is 0."""


class LogSynflow(Synflow):
    """S = sum over weights of |w log(1 + |dR/dw|)|, where R is the sum of the outputs for an input of ones.

    The network is prepared as for Entropic Score. Gradients are then non-negative but for those through a softmax, of
    which the magnitude counts. A saturated softmax passes none at all, so queries and keys add nothing, and of
    heads and head_dim only the product counts, through the values (measured in docs/results/guides.md).
    """

    name = "log_synflow"
    source: ClassVar[str] = "FreeREA: Training-Free Evolution-based Architecture Search (WACV 2023), section 3.2"

    search_img_size: ClassVar[int] = 33
    search_draws: ClassVar[int | None] = 1

    def measure_genotype(self, genotype: Genotype, draw: Draw) -> float | None:
        if draw.weights is None:
            return None
        network = ScaledNetwork(genotype, draw.weights)
        ones = torch.ones(draw.image_shape, dtype=torch.float32, device=draw.device)
        try:
            with torch.enable_grad():
                output, log_scale = network.output(ones)
        except NotSaturatedError:
            return None
        gradients = torch.autograd.grad(output, [weight.magnitude for weight in network.weights])
        flows = [_flow(w, gradient, log_scale) for w, gradient in zip(network.weights, gradients, strict=True)]
        return torch.stack(flows).double().sum().item()

    def flow(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient.abs().log1p()).abs()


def _flow(weight: Weight, gradient: Tensor, log_scale: float) -> Tensor:
    """The sum of w log(1 + dR/dw) over a weight w = magnitude * std, from dR/d magnitude, which lacks a factor.

    Overwrites the gradient.
    """
    magnitude, gradient = weight.magnitude.detach().flatten(), gradient.flatten()
    std, log_scale = math.exp(weight.log_std), log_scale - weight.log_std
    if log_scale < LARGE:
        return std * torch.dot(magnitude, gradient.mul_(math.exp(log_scale)).log1p_())
    if weight.magnitude.ndim == 4 and gradient.amin() < SMALLEST:  # the taps of a large kernel that see padding only
        magnitude = torch.where(gradient < SMALLEST, 0, magnitude)
        gradient.clamp_min_(SMALLEST)
    return std * (torch.dot(magnitude, gradient.log_()) + log_scale * magnitude.sum())
