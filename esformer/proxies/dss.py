"""DSS of TF-TAS: the diversity of attentions' weights and the saliency of all others."""

from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.gradients import by_weights, forward
from esformer.proxies.prepare import initialise, weights


class DSS(Proxy):
    """The sum over attentions' weights W of `||dR/dW||_* ||W||_*`, plus the sum over all other weights of `|w dR/dw|`.

    R is the sum of the outputs for an image of ones and `||.||_*` the nuclear norm. Weights are absolute values
    of Kaiming-normal ones, batch norms are off, other norms stay. The weights of an attention are the linear layers and
    1x1 convolutions within a module whose class is named an attention; convolutions, of which the paper's
    Transformers have only the patch embedding, count as its MLPs do.
    """

    name = "dss"
    needs: ClassVar[Needs] = "gradient"
    source: ClassVar[str] = (
        "Training-free Transformer Architecture Search (CVPR 2022), section 3, synaptic diversity and saliency (DSS)"
    )
    dtype: ClassVar[torch.dtype] = torch.float64

    def measure(self, subject: nn.Module, draw: Draw) -> float:
        network = initialise(subject, draw)
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()  # of a mean of 0 and a variance of 1
        with torch.no_grad():
            for parameter in weights(network).values():
                parameter.abs_()
        attention = _of_attentions(network)
        total, found = 0.0, False
        output = forward(network, torch.ones(1, *draw.image_shape, dtype=self.dtype))
        for weight, gradient in by_weights(output, network):
            if id(weight) in attention:
                found = True
                total += (_nuclear(gradient) * _nuclear(weight.detach())).item()
            else:
                total += (weight * gradient).abs().sum().item()
        if not found:
            raise ProxyError(f"{self.name} needs a network with attentions, and found none that runs")
        return total


def _of_attentions(network: nn.Module) -> set[int]:
    """The ids of the matrices within attentions."""
    kinds = [m for m in network.modules() if any(word in type(m).__name__.lower() for word in ("attention", "attn"))]
    return {id(p) for m in kinds for p in weights(m).values() if p.ndim == 2 or p.shape[2:].numel() == 1} | {
        id(m.in_proj_weight) for m in kinds if isinstance(m, nn.MultiheadAttention) and m.in_proj_weight is not None
    }


def _nuclear(weight: torch.Tensor) -> torch.Tensor:
    """The sum of the singular values of out, in, 1, 1 as a matrix; infinite or NaN where an entry is."""
    matrix = weight.flatten(1)
    return torch.linalg.svdvals(matrix).sum() if matrix.isfinite().all() else matrix.sum()
