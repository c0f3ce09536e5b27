"""LogSynflow: Synflow with the gradients' logarithm (FreeREA; the size metric of section 3.3)."""

from typing import ClassVar

import torch
from torch import nn

from esformer.genotype import Genotype
from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.prepare import draw_weights, prepare, weights


class LogSynflow(Proxy):
    """S = sum over weights of |w log(1 + |dR/dw|)|, where R is the sum of the outputs for an input of ones.

    The network is prepared as for Entropic Score. Gradients are then non-negative but for those through a softmax, of
    which the magnitude counts. A saturated softmax passes none at all, so queries and keys add nothing, and of
    heads and head_dim only the product counts, through the values (measured in docs/results.md).
    """

    name: ClassVar[str] = "log_synflow"
    needs: ClassVar[Needs] = "gradient"
    source: ClassVar[str] = "FreeREA: Training-Free Evolution-based Architecture Search (WACV 2023), section 3.2"
    draws: ClassVar[int] = 3

    def measure(self, subject: nn.Module | Genotype, draw: Draw) -> float:
        assert isinstance(subject, nn.Module)
        network = prepare(subject)
        draw_weights(network, draw.generator)
        with torch.enable_grad():
            output = network(torch.ones(1, *draw.image_shape, dtype=torch.float64))
        if not output.requires_grad:
            raise ProxyError(
                "LogSynflow needs a network whose output depends on convolutions or linear layers, and found none"
            )
        theirs = weights(network)
        gradients = torch.autograd.grad(output.sum(), theirs, allow_unused=True)
        scores = [(w * g.abs().log1p()).abs().sum() for w, g in zip(theirs, gradients, strict=True) if g is not None]
        return torch.stack(scores).sum().item()
