"""What is done to a network before it is measured: the paper's preparation (section 3.2), and initial weights."""

import math

import timm.layers
import torch
from timm.layers import activations as timm_activations
from torch import nn
from torch.nn.modules import activation as torch_activations
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from esformer.proxies.base import Draw
from esformer.proxies.cached_weights import log_std

NORMS = (
    *(_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm),
    *(nn.RMSNorm, timm.layers.RmsNorm, timm.layers.RmsNorm2d),
)
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
            setattr(network, name, nn.ReLU() if is_activation(getattr(child, "act", None)) else nn.Identity())
        elif isinstance(child, LAYER_SCALES):
            setattr(network, name, nn.Identity())
        elif is_activation(child):
            setattr(network, name, nn.ReLU())
        else:
            prepare(child)
    _neutralise(network)
    return network.eval()


def weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a network by name: of its convolutions, linear layers and attentions, not of its norms."""
    norms = {id(p) for module in network.modules() if isinstance(module, NORMS) for p in module.parameters()}
    named = network.named_parameters()
    return {name: p for name, p in named if p.ndim > 1 and name.endswith("weight") and id(p) not in norms}


def draw_weights(network: nn.Module, draw: Draw, nonnegative: bool = True) -> None:
    """Give every weight a Kaiming-normal value, or the absolute value of one."""
    with torch.no_grad():
        for name, weight in weights(network).items():
            # drawn in float32 whatever the network's dtype: five times faster
            if draw.weights is not None:
                drawn = draw.weights.normal(name, weight.shape) * math.exp(log_std(weight.shape))
            else:
                empty = torch.empty(weight.shape, dtype=torch.float32)
                drawn = nn.init.kaiming_normal_(empty, generator=draw.generator)
            weight.copy_(drawn.abs_() if nonnegative else drawn)


def remove_norms(network: nn.Module) -> nn.Module:
    """Take every norm out of a network, in place; an activation that timm fused into it stays."""
    for name, child in list(network._modules.items()):
        if isinstance(child, NORMS):
            activation = getattr(child, "act", None)
            setattr(network, name, activation if is_activation(activation) else nn.Identity())
        elif child is not None:
            remove_norms(child)
    return network


def initialise(network: nn.Module, draw: Draw) -> nn.Module:
    """Bring a network to the start of a training, in place: Kaiming-normal weights, biases zero, norms that only norm.

    Batch norms use the batch's statistics; dropout and the like are off, for a score is no place for chance that the
    generator does not give. LayerScale, a training aid that would hide its branch, is off too.
    """
    network.eval()
    with torch.no_grad():
        for module in list(network.modules()):
            for name, child in module._modules.items():
                if isinstance(child, LAYER_SCALES):
                    setattr(module, name, nn.Identity())
            if isinstance(module, NORMS):
                module.training = True  # its own flag alone: timm's may hold a dropout
                if isinstance(module, _BatchNorm | _InstanceNorm):
                    module.reset_running_stats()
                for parameter in module.parameters(recurse=False):
                    parameter.fill_(1)
            elif isinstance(module, nn.PReLU):
                module.reset_parameters()
            _neutralise(module)
    draw_weights(network, draw, nonnegative=False)
    return network


def _neutralise(module: nn.Module) -> None:
    """Set a module's own biases to zero, and what scales its branch, as LayerScale does elsewhere, to one."""
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            if "bias" in name:  # also EfficientFormerV2's attention_biases
                parameter.zero_()
            elif parameter.ndim == 1 and name.startswith(("gamma", "layer_scale")):
                parameter.fill_(1)


def is_activation(module: object) -> bool:
    """Whether a module is a point-wise activation function."""
    return isinstance(module, ACTIVATIONS)
