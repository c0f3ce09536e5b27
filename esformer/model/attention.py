"""The attention of EfficientFormerV2 as timm has it, at any resolution.

A bias is learned for each head and each distance of two positions, in rows and in columns: a table of H x W for H x W
positions. At another resolution the table is interpolated.
"""

import math
from typing import Any

import torch
from timm.layers import resize_rel_pos_bias_table_simple
from timm.models import efficientformer_v2 as timm_v2
from torch import Tensor, nn

Resolution = tuple[int, int]


def resize_biases(biases: Tensor, old: Resolution, new: Resolution) -> Tensor:
    """Attention biases of one resolution for another: heads, H * W -> heads, H' * W'.

    The table of distances is completed to the signed ones (a bias is the same in both directions), for timm's bicubic
    interpolation, as of Swin's tables. So a position's bias to itself stays what it is.
    """
    if old == new:
        return biases
    heads = biases.shape[0]
    quarter = biases.reshape(heads, *old)
    half = torch.cat([quarter[:, 1:].flip(1), quarter], dim=1)
    whole = torch.cat([half[:, :, 1:].flip(2), half], dim=2)  # heads, 2 H - 1, 2 W - 1
    whole = whole.to(torch.promote_types(whole.dtype, torch.float32))
    resized = resize_rel_pos_bias_table_simple(whole, new, (heads, 2 * new[0] - 1, 2 * new[1] - 1))
    return resized[:, new[0] - 1 :, new[1] - 1 :].reshape(heads, -1).to(biases.dtype)


def half(resolution: Resolution) -> Resolution:
    """What a convolution of stride 2 leaves of a resolution."""
    return math.ceil(resolution[0] / 2), math.ceil(resolution[1] / 2)


class _Biases:
    """What timm's two kinds of attention do alike with their biases, but for two things.

    timm keeps the expanded biases of an evaluating network, and misses it when weights change afterwards (loaded,
    averaged, exported): expanding them anew costs one gather. And timm's networks take one resolution only.
    """

    attention_biases: Tensor
    attention_bias_idxs: Tensor
    resolution: Resolution
    _compute_attention_bias_idxs: Any
    table: Resolution
    """The resolution that the biases are for."""

    def get_attention_biases(self, device: torch.device) -> Tensor:
        if self.resolution == self.table:
            return self.attention_biases[:, self.attention_bias_idxs]
        return self._resized_biases()

    def _renew_idxs(self) -> None:
        with torch.inference_mode(False):  # what is made in that mode could not serve a training afterwards
            self.attention_bias_idxs = self._compute_attention_bias_idxs(self.attention_bias_idxs.device)

    @torch.jit.unused
    def _resized_biases(self) -> Tensor:
        return resize_biases(self.attention_biases, self.table, self.resolution)[:, self.attention_bias_idxs]


class Attention2d(_Biases, timm_v2.Attention2d):
    """EfficientFormerV2's attention, at half resolution if `stride` is 2. B, C, H, W -> B, C, H, W."""

    def __init__(self, dim: int, key_dim: int, num_heads: int, resolution: Resolution, stride: int | None, **kw: Any):
        super().__init__(dim, key_dim, num_heads, resolution=resolution, stride=stride, **kw)
        self.table = self.resolution
        if stride is not None:  # timm's doubles, which misses an odd resolution by one
            self.upsample = nn.Upsample(size=resolution, mode="bilinear")

    @torch.jit.ignore
    def take(self, resolution: Resolution) -> None:
        """From now on expect inputs of this resolution."""
        if self.upsample is not None:
            self.upsample.size = resolution
            resolution = half(resolution)
        if resolution != self.resolution:
            self.resolution, self.N = resolution, resolution[0] * resolution[1]
            self._renew_idxs()


class Attention2dDownsample(_Biases, timm_v2.Attention2dDownsample):
    """EfficientFormerV2's attention whose queries are at half resolution. B, C, H, W -> B, C', H/2, W/2."""

    def __init__(self, dim: int, resolution: Resolution, **kw: Any):
        super().__init__(dim, resolution=resolution, **kw)
        self.table = self.resolution

    @torch.jit.ignore
    def take(self, resolution: Resolution) -> None:
        """From now on expect inputs of this resolution."""
        if resolution != self.resolution:
            self.resolution, self.resolution2 = resolution, half(resolution)
            self.N, self.N2 = resolution[0] * resolution[1], self.resolution2[0] * self.resolution2[1]
            self._renew_idxs()


def take_any_size(network: nn.Module) -> None:
    """Let all attention of a network follow the resolution of what it is given.

    TorchScript and torch.fx, which run no Python between the parts, cannot follow.
    """
    for module in network.modules():
        if isinstance(module, _Biases):
            module.register_forward_pre_hook(_follow)


def _follow(module: Any, inputs: tuple[Tensor]) -> None:
    module.take(tuple(inputs[0].shape[-2:]))
