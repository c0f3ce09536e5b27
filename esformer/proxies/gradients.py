"""What the proxies of gradients share: a forward fit to be differentiated, a loss, and the weights' gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esformer.proxies.base import ProxyError
from esformer.proxies.prepare import weights


def forward(network: nn.Module, images: Tensor) -> Tensor:
    """The output of a network, with a graph even where the caller wants none.

    Raises:
        ProxyError: it is not one tensor.
    """
    with torch.enable_grad():
        output = network(images)
    if not isinstance(output, Tensor):
        raise ProxyError(f"a network must return one tensor to be scored; this one returns a {type(output).__name__}")
    return output


def cross_entropy(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of a network that gives B, classes.

    Raises:
        ProxyError: its output is no score of classes, or has fewer classes than the labels.
    """
    output = forward(network, images)
    if output.ndim != 2:
        raise ProxyError("a loss needs a network that returns one score for each class (B, classes)")
    if labels.max() >= output.shape[1]:
        raise ProxyError(f"there are labels up to {int(labels.max())}, but the network has {output.shape[1]} classes")
    with torch.enable_grad():
        return F.cross_entropy(output, labels)


def by_weights(output: Tensor, network: nn.Module, create_graph: bool = False) -> Sequence[tuple[Tensor, Tensor]]:
    """Each weight on which the sum of an output depends, with its gradient, in the network's order.

    Raises:
        ProxyError: there is none.
    """
    theirs = list(weights(network).values())
    if output.requires_grad and theirs:
        ones = torch.ones_like(output)
        found = torch.autograd.grad(output, theirs, ones, create_graph=create_graph, allow_unused=True)
        if used := [(w, g) for w, g in zip(theirs, found, strict=True) if g is not None]:
            return used
    raise ProxyError(
        "a gradient needs a network whose output depends on the weights of convolutions or linear layers; "
        "this one's does not"
    )
