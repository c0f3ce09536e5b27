"""ZiCo: how much the gradients agree from batch to batch."""

from typing import ClassVar

from torch import nn

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.gradients import by_weights, cross_entropy
from esformer.proxies.prepare import initialise


class ZiCo(Proxy):
    """The sum over layers of log sum over weights of mean |g| / std g, over the gradients g of two halves of the batch.

    Equation 13 takes the deviation of |g|; the authors' program that of g itself, and that is what is computed here.
    Weights whose gradient does not vary are left out, and so are layers without any other. Of those that vary by
    rounding alone the quotient is large, so processors differ in the score by up to half a percent.
    """

    name = "zico"
    needs: ClassVar[Needs] = "batch"
    source: ClassVar[str] = (
        "ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients (ICLR 2023), section 3.2, eq. 13"
    )

    def measure(self, subject: nn.Module, draw: Draw) -> float:
        assert draw.images is not None and draw.labels is not None
        if len(draw.images) < 2:
            raise ProxyError(f"{self.name} compares two halves of a batch; this one has a single image")
        network = initialise(subject, draw)
        halves = [
            [gradient for _, gradient in by_weights(cross_entropy(network, images, labels), network)]
            for images, labels in zip(draw.images.tensor_split(2), draw.labels.tensor_split(2), strict=True)
        ]
        total, layers = 0.0, 0
        for one, other in zip(*halves, strict=True):
            mean = (one.abs() + other.abs()).double() / 2
            deviation = (one - other).abs().double() / 2  # of two values, about their mean
            varies = deviation > 0
            if varies.any():
                total += (mean[varies] / deviation[varies]).sum().log().item()
                layers += 1
        if not layers:
            raise ProxyError(f"{self.name} is not defined here: no gradient varies between the halves of the batch")
        return total
