"""AZ-NAS's expressivity: how evenly feature maps fill the space of their channels."""

from typing import ClassVar

import torch
from torch import nn

from esformer.proxies.base import Draw, Needs, Proxy
from esformer.proxies.blocks import block_features, expressivity


class AZExpressivity(Proxy):
    """The sum over primary blocks of the entropy of the principal components of the block's output.

    A component counts by its share of the variance over images and positions. The authors add 1e-8 to each share within
    the logarithm, which is left out here, and feed 64 images, here 8.
    """

    name = "az_expressivity"
    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = (
        "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search (CVPR 2024), section 3.2, expressivity"
    )

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        return sum(expressivity(self.name, feature) for feature in block_features(self.name, subject, draw))
