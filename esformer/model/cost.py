"""What a genotype costs: parameters and MACs in closed form, without building the network; and budgets on them.

Parameters are those of `ESFormer(genotype)`; MACs are what fvcore counts on it, where a batch norm is 2 a value and a
bilinear upsampling 4. Both are exact, and fast enough to reject genotypes by the thousand in a search.

Below, a convolution with its norm has a weight, a bias, a scale and a shift for each output: `weights + 3 * out`
parameters, and `(weights + 2 * out) * positions` MACs.
"""

import math
from dataclasses import asdict, dataclass
from functools import cache

from esformer.choices import bottleneck_width, size_of
from esformer.errors import ESFormerError
from esformer.genotype import ConvBlock, Genotype, TransformerLayer

ATTN_RATIO = 4
"""Value channels a key channel (EfficientFormerV2)."""
DOWNSAMPLE_KEYS, DOWNSAMPLE_HEADS = 8 * 16, 8
"""Key channels and heads of the attention beside the last downsampling (EfficientFormerV2)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a genotype costs.

    Args:
        params: parameters of the network.
        macs: multiply-accumulates of one image.
    """

    params: int
    macs: int


def cost(genotype: Genotype, img_size: int | tuple[int, int] = 224, num_classes: int = 1000, in_chans: int = 3) -> Cost:
    """Parameters and MACs of `ESFormer(genotype, num_classes, in_chans, img_size)`, to the last one.

    Args:
        genotype: the architecture.
        img_size: height and width of the image in pixels; one number means square.
        num_classes: of the classifier, which counts.
        in_chans: channels of the image.

    Examples:
        >>> cost(Genotype.shipped("efficientformerv2_s0"), img_size=32, num_classes=10)
        Cost(params=3244954, macs=7908224)
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    height, width = -(-height // 2), -(-width // 2)
    out = genotype.stages[0][0].out
    mid = out // 2
    stem1, stem2 = 9 * in_chans * mid, 9 * mid * out
    params = stem1 + 3 * mid + stem2 + 3 * out
    macs = (stem1 + 2 * mid) * height * width
    height, width = -(-height // 2), -(-width // 2)
    macs += (stem2 + 2 * out) * height * width

    for index, stage in enumerate(genotype.stages):
        full = height * width
        if index > 0:
            chs, out = out, stage[0].out
            height, width = -(-height // 2), -(-width // 2)
            before, full = full, height * width
            params += 9 * chs * out + 3 * out
            macs += (9 * chs * out + 2 * out) * full
            if index == 3:
                p, m = _downsample_attention(chs, out, before, full)
                params += p
                macs += m
        stride = 2 if index == 2 else 1
        positions = -(-height // stride) * -(-width // stride)
        for block in stage:
            chs, out = out, block.out
            kernel = 9
            if type(block) is ConvBlock:
                kernel = block.kernel * block.kernel
            elif type(block) is TransformerLayer:
                p, m = _attention(chs, block.heads, block.head_dim, positions, full, strided=index == 2)
                params += p
                macs += m
            if block.ffn == "ibn":
                hidden = chs * block.ratio
                weights, norms = hidden * (chs + kernel + out), 2 * hidden + out
            elif block.ffn == "convnext":
                hidden = chs * block.ratio
                weights, norms = kernel * chs + hidden * (chs + out), chs + hidden + out
            else:
                assert block.ffn == "bottleneck", block.ffn
                hidden = bottleneck_width(out, block.ratio)
                weights, norms = hidden * (chs + kernel * hidden + out), 2 * hidden + out
            params += weights + 3 * norms + out  # and LayerScale
            macs += (weights + 2 * norms) * full

    params += 2 * out + out * num_classes + num_classes
    macs += 2 * out * full + out * num_classes
    return Cost(params, macs)


def paper_macs(size: str, img_size: int | tuple[int, int] = 224, num_classes: int = 1000) -> int:
    """The paper's MACs of a size (Table 3), brought to other images and classes.

    They scale as those of EfficientFormerV2 of the size do: pixels alone are too few for small images, whose feature
    maps are rounded up.

    Args:
        size: its name, such as S0.
        img_size: pixels each way, or (height, width).
        num_classes: of the classifier.

    Raises:
        ESFormerError: there is no such size.
    """
    own = size_of(size)
    reference = _shipped(own.reference)
    return round(own.macs * cost(reference, img_size, num_classes).macs / cost(reference).macs)


_shipped = cache(Genotype.shipped)


def _attention(chs: int, heads: int, head_dim: int, positions: int, full: int, strided: bool) -> tuple[int, int]:
    """Parameters and MACs of Attention2d and its LayerScale; `positions` attend to each other, `full` come out."""
    keys = heads * head_dim
    values = ATTN_RATIO * keys
    weights, norms = 2 * chs * keys + chs * values + 9 * values, 2 * keys + 2 * values  # q, k, v, v_local
    upsample = 0
    if strided:
        weights, norms, upsample = weights + 9 * chs, norms + chs, 4 * values * full
    project = values * chs
    talking = 2 * heads * heads
    params = weights + 3 * norms + project + 3 * chs + talking + 2 * heads + heads * positions + chs
    macs = (weights + 2 * norms) * positions + (keys + values + talking) * positions * positions
    return params, macs + upsample + (project + 2 * chs) * full


def _downsample_attention(chs: int, out: int, before: int, after: int) -> tuple[int, int]:
    """Parameters and MACs of Attention2dDownsample, from `before` to `after` positions."""
    keys = DOWNSAMPLE_KEYS
    values = ATTN_RATIO * keys
    params = 10 * chs + chs * keys + 3 * keys  # the query: a depthwise convolution without norm, then a projection
    params += chs * (keys + values) + 3 * (keys + values) + 12 * values  # k, v, v_local
    params += values * out + 3 * out + DOWNSAMPLE_HEADS * before
    macs = (9 * chs + chs * keys + 2 * keys + 11 * values + values * out + 2 * out) * after
    macs += (chs * (keys + values) + 2 * (keys + values)) * before + (keys + values) * before * after
    return params, macs


@dataclass(frozen=True)
class Budget:
    """What a genotype may cost at most, in any combination; None is no limit.

    Args:
        params: parameters.
        macs: multiply-accumulates of one image.
        latency_ms: milliseconds of one image. It has to be measured (`esformer.model.latency`), and is a limit of its
            own: `allows` knows the closed form alone.

    Raises:
        ESFormerError: a limit is not above 0, or not finite.

    Examples:
        >>> budget = Budget(params=3_500_000, macs=410_000_000)
        >>> budget.allows(cost(Genotype.shipped("efficientformerv2_s0")))
        True
        >>> print(budget)
        3,500,000 params and 410,000,000 macs
    """

    params: int | None = None
    macs: int | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if limit is not None and not 0 < limit < math.inf:
                raise ESFormerError(f"budget.{name} is {limit}; it must be above 0 and finite")

    @classmethod
    def for_size(cls, size: str) -> "Budget":
        """The paper's budgets (section 4.2): 3.5, 6 and 12.5 million parameters; `paper_macs` has Table 3's MACs.

        Args:
            size: its name, such as S0.
        """
        return cls(params=size_of(size).params)

    def allows(self, cost: Cost) -> bool:
        """Whether parameters and MACs are within the budget.

        Args:
            cost: of a genotype.
        """
        return (self.params is None or cost.params <= self.params) and (self.macs is None or cost.macs <= self.macs)

    def allows_latency(self, ms: float) -> bool:
        """Whether a measured latency is within the budget.

        Args:
            ms: milliseconds of one image.
        """
        return self.latency_ms is None or ms <= self.latency_ms

    def __str__(self) -> str:
        limits = [f"{getattr(self, name):,} {name}" for name in ("params", "macs") if getattr(self, name) is not None]
        if self.latency_ms is not None:
            limits.append(f"{self.latency_ms:,g} ms latency")
        return " and ".join(limits) or "no limit"
