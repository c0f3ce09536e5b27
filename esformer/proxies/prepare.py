"""The preparation of section 3.2, which Entropic Score and LogSynflow share: let only non-negative values flow."""

import timm.layers
import torch
from timm.layers import activations as timm_activations
from torch import nn
from torch.nn.modules import activation as torch_activations
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
LAYER_SCALES = (timm.layers.LayerScale, timm.layers.LayerScale2d)
_NOT_POINTWISE = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention, nn.Threshold, nn.GLU)
ACTIVATIONS = tuple(
    kind
    for module in (torch_activations, timm_activations)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module.__name__
    if kind not in _NOT_POINTWISE
)


def prepare(network: nn.Module) -> nn.Module:
    """Suppress norms (and LayerScale, a training aid) and make every activation a ReLU, in place; biases become zero.

    Softmax stays: it is no activation between layers but a weighting, and non-negative as it is. The weights are still
    to be drawn, by `draw_weights`.
    """
    for name, child in network._modules.items():  # named_children would pass over one that stands in two places
        if child is None:
            continue
        if isinstance(child, NORMS):
            # timm fuses the activation into the norm: what is left of it is the activation
            setattr(network, name, nn.ReLU() if _is_activation(getattr(child, "act", None)) else nn.Identity())
        elif isinstance(child, LAYER_SCALES):
            setattr(network, name, nn.Identity())
        elif _is_activation(child):
            setattr(network, name, nn.ReLU())
        else:
            prepare(child)
    with torch.no_grad():
        for name, parameter in network.named_parameters(recurse=False):
            if "bias" in name:  # also EfficientFormerV2's attention_biases
                parameter.zero_()
    return network.eval()


def weights(network: nn.Module) -> list[nn.Parameter]:
    """The weights of a prepared network: of its convolutions, linear layers and attentions."""
    return [p for name, p in network.named_parameters() if p.ndim > 1 and name.endswith("weight")]


def draw_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Give every weight the absolute value of a Kaiming-normal one."""
    with torch.no_grad():
        for weight in weights(network):
            nn.init.kaiming_normal_(weight, generator=generator).abs_()


def _is_activation(module: object) -> bool:
    return isinstance(module, ACTIVATIONS)
