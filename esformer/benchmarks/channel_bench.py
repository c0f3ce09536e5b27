"""Channel-Bench-Macro's ResNets: seven widths, each in four sizes, all 16,384 trained three times on CIFAR-10.

Su et al., https://github.com/xiusu/Channel-Bench-Macro. The convolutions inside of the residual blocks have widths of
their own; those at both ends of a skip connection share theirs.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from esformer.benchmarks.base import BenchmarkError, Entry, GeneBenchmark
from esformer.benchmarks.layers import conv_bn_params
from esformer.benchmarks.tables import entries, read_csv
from esformer.topology import Block, Topology

FULL_WIDTHS = (256, 256, 256, 512, 512, 512, 512)


class Pair(NamedTuple):
    """Two 3x3 convolutions; the first one's stride is the pair's, and where it is 1 the input is added."""

    in_chs: int
    middle: int
    out: int
    stride: int


def widths(architecture: str) -> list[int]:
    """The seven widths that seven digits stand for, in quarters of the full ones.

    Raises:
        BenchmarkError: they are not seven digits from 1 to 4.
    """
    if not re.fullmatch("[1-4]{7}", architecture):
        raise BenchmarkError(f"{architecture[:80]!r} must be 7 digits from 1 to 4, such as 1234123")
    return [int(digit) * full // 4 for digit, full in zip(architecture, FULL_WIDTHS, strict=True)]


def pairs(widths: list[int]) -> Iterator[Pair]:
    """The five pairs between the stem, which has the first width, and the classifier."""
    c0, c1, c2, c3, c4, c5, c6 = widths
    yield Pair(c0, c1, c0, 1)
    yield Pair(c0, c2, c0, 1)
    yield Pair(c0, c3, c4, 2)
    yield Pair(c4, c5, c4, 1)
    yield Pair(c4, c6, c4, 1)


class PairBlock(nn.Module):
    """Convolution, norm, ReLU, convolution, norm; the input is added where the resolution stays; ReLU."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.residual = pair.stride == 1
        self.conv1 = nn.Conv2d(pair.in_chs, pair.middle, 3, pair.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(pair.middle)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(pair.middle, pair.out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(pair.out)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(x + out if self.residual else out)


class ChannelBenchResNet(GeneBenchmark):
    """A space of sizes: which width suits each of seven convolutions."""

    name = "channel-bench-resnet"
    source = "Channel-Bench-Macro, https://github.com/xiusu/Channel-Bench-Macro (Results_ResNet.json)"
    genes = (("1", "2", "3", "4"),) * 7
    group = "size"

    def spell(self, values: Sequence[str]) -> str:
        return "".join(values)

    def values(self, architecture: str) -> tuple[str, ...]:
        return tuple(_checked(architecture))

    def read(self, table: Path, dataset: str = "cifar10") -> list[Entry]:
        self.dataset(dataset)
        return entries(table, read_csv(table, "arch", "test_acc_mean", "params"), _checked)

    def network(self, architecture: str, dataset: str = "cifar10") -> nn.Module:
        chosen = widths(architecture)
        return nn.Sequential(
            nn.Conv2d(3, chosen[0], 3, 2, 1, bias=False),
            nn.BatchNorm2d(chosen[0]),
            nn.ReLU(),
            *map(PairBlock, pairs(chosen)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(chosen[4], self.dataset(dataset).num_classes),
        )

    def params(self, architecture: str, dataset: str = "cifar10") -> int:
        chosen = widths(architecture)
        convs = sum(conv_bn_params(p.in_chs, p.middle, 3) + conv_bn_params(p.middle, p.out, 3) for p in pairs(chosen))
        return conv_bn_params(3, chosen[0], 3) + convs + (chosen[4] + 1) * self.dataset(dataset).num_classes

    def macs(self, architecture: str, dataset: str = "cifar10") -> int:
        chosen, images = widths(architecture), self.dataset(dataset)
        positions = (images.img_size // 2) ** 2
        macs = conv_bn_params(3, chosen[0], 3) * positions  # a norm is 2 a value, as it has 2 parameters a channel
        for pair in pairs(chosen):
            positions //= pair.stride**2
            macs += conv_bn_params(pair.in_chs, pair.middle, 3) * positions
            macs += conv_bn_params(pair.middle, pair.out, 3) * positions
        return macs + chosen[4] * positions + chosen[4] * images.num_classes  # pooling and classifier

    def topology(self, architecture: str) -> Topology:
        shrinks = (4, 1, 1, 4, 1, 1, 1)  # the stem and the third pair have a stride of 2
        return Topology(
            tuple(
                Block(1, {3: 1}, channels=width, shrink=shrink)
                for width, shrink in zip(widths(architecture), shrinks, strict=True)
            )
        )


def _checked(architecture: str) -> str:
    widths(architecture)
    return architecture
