"""Batch norms and layer scales folded into the convolutions before them: the same outputs, faster, for inference only.

In evaluation a batch norm scales and shifts each channel by constants, and a layer scale scales it, which the weights
and the bias of a convolution do as well. Source: common practice. The arithmetic of norms is that of
`torch.nn.utils.fuse_conv_bn_eval`.
"""

import itertools
import statistics
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d, LayerScale2d
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from esformer.model.esformer import ESFormerBlock
from esformer.model.latency import MOST, Latency, runs, summarise

Network = TypeVar("Network", bound=nn.Module)


def fold(network: Network) -> Network:
    """A copy in evaluation mode without the batch norms that follow a convolution, and without layer scales.

    Outputs and features are the same to float rounding. The last norm of an ESFormer follows a sum, so it stays. The
    copy is not for training, and its weights are not for `esformer.load`, which expects the norms.
    """
    folded = deepcopy(network).eval()
    for module in folded.modules():
        pair: Any = module
        conv, norm = getattr(pair, "conv", None), getattr(pair, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):  # timm's ConvNorm and ConvNormAct
            pair.conv = fuse_conv_bn_eval(conv, norm)
            pair.bn = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
    for block in folded.modules():
        if isinstance(block, ESFormerBlock):
            block.ls2 = _scaled(block.mlp.fc2.conv, block.ls2)
            if block.token_mixer is not None:
                block.ls1 = _scaled(block.token_mixer.proj.conv, block.ls1)
    return folded


@torch.no_grad()
def _scaled(conv: nn.Conv2d, scale: nn.Module) -> nn.Module:
    """Have a convolution with a bias do what a layer scale after it does; gives what is left of that."""
    if isinstance(scale, LayerScale2d):
        assert conv.bias is not None
        conv.weight *= scale.gamma.view(-1, 1, 1, 1)
        conv.bias *= scale.gamma
    return nn.Identity()


@dataclass(frozen=True)
class SpeedUp:
    """How much faster one network is than another.

    Args:
        before: milliseconds of a batch with the first.
        after: with the second.
        ratio: how many times as fast the second is, the median of the turns.
        quartiles: of the ratio.
    """

    before: Latency
    after: Latency
    ratio: float
    quartiles: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.quartiles
        return f"{self.before} -> {self.after}, {self.ratio:.2f} ({low:.2f} to {high:.2f}) times as fast"


def speed_up(network: nn.Module, folded: nn.Module, images: Tensor, turns: int = MOST) -> SpeedUp:
    """Time two networks by turns, so that whatever else the machine does disturbs both alike.

    On one CPU thread it is that thread's own time; see `esformer.model.latency`.

    Args:
        network: the first.
        folded: the second, on the same device.
        images: B, C, H, W, on that device.
        turns: of each; at least 2.
    """
    threads, own = torch.get_num_threads(), images.device.type == "cpu"
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            both = zip(runs(network, images, own), runs(folded, images, own), strict=True)
            times = list(itertools.islice(both, turns))
    finally:
        torch.set_num_threads(threads)
    before, after = zip(*times, strict=True)
    ratios = [first / second for first, second in times]
    low, _, high = statistics.quantiles(ratios, n=4)
    return SpeedUp(summarise(before), summarise(after), statistics.median(ratios), (low, high))
