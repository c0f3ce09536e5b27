"""Batch norms folded into the convolutions before them: the same outputs, faster, for inference only.

In evaluation a batch norm scales and shifts each channel by constants, which the weights and the bias of a convolution
do as well. Source: common practice, such as `torch.nn.utils.fuse_conv_bn_eval`, which does the arithmetic here.
"""

import itertools
import statistics
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from esformer.model.latency import MOST, Latency, runs, summarise

Network = TypeVar("Network", bound=nn.Module)


def fold(network: Network) -> Network:
    """A copy in evaluation mode without the batch norms that follow a convolution.

    Outputs and features are the same to float rounding. The last norm of an ESFormer follows a sum, so it stays.
    Layer scales stay too: they cost next to nothing. The copy is not for training, and its weights are not for
    `esformer.load`, which expects the norms.
    """
    folded = deepcopy(network).eval()
    for module in folded.modules():
        pair: Any = module
        conv, norm = getattr(pair, "conv", None), getattr(pair, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):  # timm's ConvNorm and ConvNormAct
            pair.conv = fuse_conv_bn_eval(conv, norm)
            pair.bn = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
    return folded


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
