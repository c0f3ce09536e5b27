"""The cross-entropy of a batch: what grad_norm, GraSP and ZiCo differentiate."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esformer.proxies.base import ProxyError


def cross_entropy(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of a network that gives B, classes.

    Raises:
        ProxyError: its output is no score of classes, or it has fewer classes than the labels.
    """
    with torch.enable_grad():
        output = network(images)
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise ProxyError("a loss needs a network that returns one score for each class (B, classes)")
        if labels.max() >= output.shape[1]:
            raise ProxyError(
                f"there are labels up to {int(labels.max())}, but the network has {output.shape[1]} classes"
            )
        if not output.requires_grad:
            raise ProxyError("a loss needs a network whose output depends on convolutions or linear layers")
        return F.cross_entropy(output, labels)
