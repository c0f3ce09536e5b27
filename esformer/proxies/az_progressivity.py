"""AZ-NAS's progressivity: whether every block adds to what the feature maps express."""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from esformer.proxies.base import Draw, Needs, Proxy
from esformer.proxies.blocks import block_features, expressivity


class AZProgressivity(Proxy):
    """The smallest growth of `az_expressivity` from one primary block to the next; negative where it falls."""

    name = "az_progressivity"
    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = (
        "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search (CVPR 2024), section 3.2, progressivity"
    )

    @torch.no_grad()
    def measure(self, subject: nn.Module, draw: Draw) -> float:
        scores = [expressivity(self.name, feature) for feature in block_features(self.name, subject, draw)]
        return min(after - before for before, after in pairwise(scores))
