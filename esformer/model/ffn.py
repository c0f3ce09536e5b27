"""The kinds of Feed Forward Network: Figure 3's Inverted Bottleneck and ConvNeXt block, Table 5's residual bottleneck.

Each maps `in_chs` to `out_chs` channels at the same resolution, B, C, H, W -> B, C', H, W. Every convolution is
followed by a batch norm, as in EfficientFormerV2; the names of the parts are timm's, so that its weights fit. `dd` is
the device and dtype of all parameters and buffers, under PyTorch's names.
"""

from typing import Any

from timm.layers import ConvNormAct
from timm.models.efficientformer_v2 import ConvNorm
from torch import Tensor, nn

from esformer.choices import bottleneck_width


class InvertedBottleneck(nn.Module):
    """1x1 expand, depthwise k x k, 1x1 project (Figure 3, left). With k = 3 it is EfficientFormerV2's FFN."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int, ratio: int, act_layer: type[nn.Module] = nn.GELU, **dd: Any
    ) -> None:
        super().__init__()
        hidden = in_chs * ratio
        self.fc1 = ConvNormAct(in_chs, hidden, 1, bias=True, act_layer=act_layer, **dd)
        self.mid = ConvNormAct(hidden, hidden, kernel, groups=hidden, bias=True, act_layer=act_layer, **dd)
        self.fc2 = ConvNorm(hidden, out_chs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.mid(self.fc1(x)))


class ConvNeXtBlock(nn.Module):
    """The depthwise k x k moved in front of the expansion, with a single activation (Figure 3, right)."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int, ratio: int, act_layer: type[nn.Module] = nn.GELU, **dd: Any
    ) -> None:
        super().__init__()
        hidden = in_chs * ratio
        self.mid = ConvNorm(in_chs, in_chs, kernel, groups=in_chs, **dd)
        self.fc1 = ConvNormAct(in_chs, hidden, 1, bias=True, act_layer=act_layer, **dd)
        self.fc2 = ConvNorm(hidden, out_chs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.mid(x)))


class ResidualBottleneck(nn.Module):
    """ResNet's bottleneck: 1x1 reduce to `bottleneck_width` channels (`ratio` divides), dense k x k, 1x1 restore."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int, ratio: int, act_layer: type[nn.Module] = nn.GELU, **dd: Any
    ) -> None:
        super().__init__()
        hidden = bottleneck_width(out_chs, ratio)
        self.fc1 = ConvNormAct(in_chs, hidden, 1, bias=True, act_layer=act_layer, **dd)
        self.mid = ConvNormAct(hidden, hidden, kernel, bias=True, act_layer=act_layer, **dd)
        self.fc2 = ConvNorm(hidden, out_chs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.mid(self.fc1(x)))


FFNS: dict[str, type[InvertedBottleneck] | type[ConvNeXtBlock] | type[ResidualBottleneck]] = {
    "ibn": InvertedBottleneck,
    "convnext": ConvNeXtBlock,
    "bottleneck": ResidualBottleneck,
}
"""A genotype's `ffn` gene and the module it stands for."""
