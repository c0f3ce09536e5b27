"""GraSP: how much the weights preserve the flow of the gradient."""

from typing import ClassVar

import torch
from torch import nn

from esformer.proxies.base import Draw, Needs, Proxy
from esformer.proxies.gradients import by_weights, cross_entropy
from esformer.proxies.prepare import initialise


class GraSP(Proxy):
    """Minus the sum over weights of w (H g), with the gradient g and the Hessian H of the cross-entropy.

    H g is the gradient of g . stop(g), so one double backward gives it. Weights are not pruned here, so the sum is of
    all; its sign is that of the paper's score, where higher means that a weight matters more.
    """

    name = "grasp"
    needs: ClassVar[Needs] = "batch"
    source: ClassVar[str] = (
        "Picking Winning Tickets Before Training by Preserving Gradient Flow (ICLR 2020), section 4, eq. 8; "
        "summed over the network as in Zero-Cost Proxies for Lightweight NAS (ICLR 2021), section 3.2"
    )

    def measure(self, subject: nn.Module, draw: Draw) -> float:
        assert draw.images is not None and draw.labels is not None
        network = initialise(subject, draw)
        loss = cross_entropy(network, draw.images, draw.labels)
        gradients = [g for _, g in by_weights(loss, network, create_graph=True)]
        with torch.enable_grad():
            flow = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()
        return -sum((w * product).double().sum().item() for w, product in by_weights(flow, network))
