"""grad_norm: how large the gradients of the loss are at the start."""

from typing import ClassVar

from torch import nn

from esformer.proxies.base import Draw, Needs, Proxy
from esformer.proxies.gradients import by_weights, cross_entropy
from esformer.proxies.prepare import initialise


class GradNorm(Proxy):
    """The sum over layers of the Euclidean norm of the gradient of the cross-entropy with respect to their weights."""

    name = "grad_norm"
    needs: ClassVar[Needs] = "batch"
    source: ClassVar[str] = "Zero-Cost Proxies for Lightweight NAS (ICLR 2021), section 3.1"

    def measure(self, subject: nn.Module, draw: Draw) -> float:
        assert draw.images is not None and draw.labels is not None
        network = initialise(subject, draw)
        loss = cross_entropy(network, draw.images, draw.labels)
        norms: list[float] = [gradient.double().norm().item() for _, gradient in by_weights(loss, network)]
        return sum(norms)
