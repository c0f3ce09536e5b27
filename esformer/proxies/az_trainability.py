"""AZ-NAS's trainability: whether gradients pass through blocks without growing or vanishing."""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.proxies.blocks import block_features


class AZTrainability(Proxy):
    """The mean over pairs of consecutive primary blocks of 2 - s - 1/s, which is 0 at its best, where s = 1.

    s is the spectral norm of the Jacobian of a block, averaged over images and positions, as a vector of random signs
    g sent backward estimates it: the mean of (J^T g) g^T. Where a block has a stride, the gradients of the
    positions that it merges are stacked (pixel unshuffle), behind a border of zeros if they do not divide. Pairs
    between which a number of tokens changes have no such matrix, nor have pairs of which one does not depend on the
    other; they are left out. The authors feed 64 images, here 8 are.
    """

    name = "az_trainability"
    needs: ClassVar[Needs] = "gradient"
    source: ClassVar[str] = (
        "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search (CVPR 2024), section 3.2, trainability"
    )

    def measure(self, subject: nn.Module, draw: Draw) -> float:
        with torch.enable_grad():
            features = block_features(self.name, subject, draw)
        scores = []
        for before, after in pairwise(features):
            signs = torch.randint(0, 2, after.shape, generator=draw.generator).to(after.dtype) * 2 - 1
            if not after.requires_grad or not before.requires_grad:
                continue
            (gradient,) = torch.autograd.grad(after, before, signs, retain_graph=True, allow_unused=True)
            stacked = None if gradient is None else self._stacked(gradient, after)
            if stacked is None:
                continue
            g_in, g_out = stacked.flatten(0, -2).double(), signs.flatten(0, -2).double()
            if not g_in.isfinite().all():
                raise ProxyError(f"{self.name} is not defined here: the gradient of a block is not finite")
            norm = float(torch.linalg.matrix_norm(g_in.t() @ g_out / len(g_out), 2))
            scores.append(2 - norm - 1 / (norm + 1e-6))
        if not scores:
            raise ProxyError(f"{self.name} needs two blocks of which one depends on the other, and found none")
        return sum(scores) / len(scores)

    @staticmethod
    def _stacked(gradient: Tensor, after: Tensor) -> Tensor | None:
        """The gradient at each position of `after`, with as many channels as it merges; None if that is undefined."""
        if gradient.shape[1:-1] == after.shape[1:-1]:
            return gradient
        if gradient.ndim != 4 or after.ndim != 4:
            return None
        (h, w), (out_h, out_w) = gradient.shape[1:3], after.shape[1:3]
        stride = max(-(-h // out_h), -(-w // out_w))
        if h < out_h or w < out_w:
            return None
        image = F.pad(gradient.permute(0, 3, 1, 2), (0, out_w * stride - w, 0, out_h * stride - h))
        return F.pixel_unshuffle(image, stride).permute(0, 2, 3, 1)
