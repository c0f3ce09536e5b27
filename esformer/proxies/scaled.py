"""A genotype's prepared network (section 3.2) without modules, in float32, with a scale carried beside every tensor.

Without norms the activations grow out of float32's range within a few blocks. But with non-negative weights and inputs,
and biases of zero, the network is positively homogeneous in all but the logits of its softmaxes: what is divided out of
a tensor can be multiplied back at the end. So a feature map is a float32 tensor of moderate values and the logarithm of
the factor that they lack. The result is that of `prepare` and `draw_weights` on `ESFormer(genotype)` in float64 to
about six digits, in a fraction of the time: nothing is built, and the weights are views of kept draws.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esformer.choices import bottleneck_width
from esformer.genotype import Block, Genotype, TransformerLayer
from esformer.model.cost import ATTN_RATIO, DOWNSAMPLE_HEADS, DOWNSAMPLE_KEYS
from esformer.proxies.cached_weights import CachedWeights, log_std

# oneDNN compiles a convolution for every shape. A search sees thousands; by default 1,024 are kept.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")

SATURATED = 30.0
"""From this logarithm of its logits' size on, a softmax is one-hot but for exact ties: e^30 times a gap of 1e-6."""

SMALLEST = 1e-30
"""What the ReLU leaves instead of zeros."""

NOTHING = 1e10 * SMALLEST
"""An activation below this has come from those alone: 0 in the network."""

Size = tuple[int, int]
ActivationHook = Callable[[Tensor], None]


class NotSaturatedError(Exception):
    """A softmax is not one-hot, so that the logits' exact values matter."""


@dataclass(slots=True)
class FeatureMap:
    """`values * exp(log_scale)`: H * W positions by C channels, none negative."""

    values: Tensor
    log_scale: float
    size: Size

    @property
    def channels(self) -> int:
        return self.values.shape[1]

    def image(self) -> Tensor:
        """1, C, H, W, in channels-last order."""
        return self.values.view(1, *self.size, -1).permute(0, 3, 1, 2)


@dataclass(slots=True)
class Weight:
    """A weight `magnitude * exp(log_std)` that a gradient is wanted for."""

    magnitude: Tensor
    log_std: float


class ScaledNetwork:
    """The network of a genotype with one draw of weights.

    Args:
        genotype: the architecture.
        cached: where the weights come from; layers have the names of ESFormer's.
        activation_hook: called with the output of every activation, H * W by C, up to its scale.
    """

    def __init__(
        self, genotype: Genotype, cached: CachedWeights, activation_hook: ActivationHook | None = None
    ) -> None:
        self.genotype, self.cached, self.activation_hook = genotype, cached, activation_hook
        self.weights: list[Weight] = []
        """With gradients enabled: all weights that the output depends on, but those that only move saturated logits."""

    def output(self, image: Tensor, num_classes: int = 1000) -> tuple[Tensor, float]:
        """The sum of the outputs for one image, 3, H, W, and the logarithm of the factor that it lacks."""
        x = self.features(image)
        weight, scale = self._weight("head", (num_classes, x.channels))
        return (weight @ x.values.mean(0)).sum(), x.log_scale + scale

    def features(self, image: Tensor) -> FeatureMap:
        """What the last stage gives for one image, 3, H, W.

        Raises:
            NotSaturatedError: this network is not of the kind that can be computed so.
        """
        stages = self.genotype.stages
        width = stages[0][0].out
        x = FeatureMap(image.permute(1, 2, 0).reshape(-1, 3), 0.0, (image.shape[1], image.shape[2]))
        x = self._conv(x, "stem.conv1.conv", width // 2, 3, stride=2)
        # the only activation that has work to do, for an image has negative pixels; zeros would have no logarithm
        x.values = x.values.clamp_min(SMALLEST)
        x = self._conv(self._activated(x), "stem.conv2.conv", width, 3, stride=2)
        x = _normalised(self._activated(x))
        for s, blocks in enumerate(stages):
            if s > 0:
                x = self._downsample(x, f"stages.{s}.downsample", blocks[0].out, attention=s == 3)
            for b, block in enumerate(blocks):
                name, kernel = f"stages.{s}.blocks.{b}", 3
                if isinstance(block, TransformerLayer):
                    mixed = self._attention(x, f"{name}.token_mixer", block.heads, block.head_dim, strided=s == 2)
                    x = _normalised(_sum(x, mixed))
                else:
                    kernel = block.kernel
                x = _normalised(_sum(x, self._ffn(x, f"{name}.mlp", block, kernel)))
        return x

    def _weight(self, layer: str, shape: tuple[int, ...]) -> tuple[Tensor, float]:
        magnitude, scale = self.cached.magnitudes(f"{layer}.weight", shape), log_std(shape)
        if torch.is_grad_enabled():
            magnitude = magnitude.detach().requires_grad_()
            self.weights.append(Weight(magnitude, scale))
        return magnitude, scale

    def _pointwise(self, x: FeatureMap, layer: str, out: int) -> FeatureMap:
        """A 1x1 convolution."""
        weight, scale = self._weight(layer, (out, x.channels))
        return FeatureMap(x.values @ weight.t(), x.log_scale + scale, x.size)

    def _conv(self, x: FeatureMap, layer: str, out: int, kernel: int, stride: int = 1, groups: int = 1) -> FeatureMap:
        weight, scale = self._weight(layer, (out, x.channels // groups, kernel, kernel))
        reach = min(kernel // 2, max(x.size) - 1)
        if beyond := kernel // 2 - reach:  # taps that see nothing but padding, wherever they stand
            weight = weight[:, :, beyond:-beyond, beyond:-beyond]
        if torch.is_grad_enabled() and groups == x.channels > 1 and stride == 1 and reach > 1:
            image = _LargeDepthwise.apply(x.image(), weight, reach)
        else:
            image = F.conv2d(x.image(), weight, stride=stride, padding=reach, groups=groups)
        return FeatureMap(_flat(image), x.log_scale + scale, (image.shape[2], image.shape[3]))

    def _depthwise(self, x: FeatureMap, layer: str, kernel: int, stride: int = 1) -> FeatureMap:
        return self._conv(x, layer, x.channels, kernel, stride, groups=x.channels)

    def _activated(self, x: FeatureMap) -> FeatureMap:
        """An activation: what arrives is non-negative, so a ReLU leaves it as it is."""
        if self.activation_hook is not None:
            self.activation_hook(x.values)
        return x

    def _ffn(self, x: FeatureMap, name: str, block: Block, kernel: int) -> FeatureMap:
        """Figure 3, and the bottleneck of Table 5."""
        if block.ffn == "bottleneck":
            hidden = bottleneck_width(block.out, block.ratio)
            x = self._activated(self._pointwise(x, f"{name}.fc1.conv", hidden))
            x = self._activated(self._conv(x, f"{name}.mid.conv", hidden, kernel))
        elif block.ffn == "ibn":
            x = self._activated(self._pointwise(x, f"{name}.fc1.conv", x.channels * block.ratio))
            x = self._activated(self._depthwise(x, f"{name}.mid.conv", kernel))
        else:
            assert block.ffn == "convnext", block.ffn
            hidden = x.channels * block.ratio
            x = self._depthwise(x, f"{name}.mid.conv", kernel)
            x = self._activated(self._pointwise(x, f"{name}.fc1.conv", hidden))
        return self._pointwise(x, f"{name}.fc2.conv", block.out)

    def _attention(self, x: FeatureMap, name: str, heads: int, head_dim: int, strided: bool) -> FeatureMap:
        """EfficientFormerV2's attention with talking heads, at half resolution if strided."""
        out, full = x.channels, x.size
        if strided:
            x = self._depthwise(x, f"{name}.stride_conv.conv", 3, stride=2)
        positions = x.values.shape[0]
        with torch.no_grad():  # a saturated softmax passes no gradient
            query = self._pointwise(x, f"{name}.q.conv", heads * head_dim)
            key = self._pointwise(x, f"{name}.k.conv", heads * head_dim)
            logits = _heads(query, heads) @ _heads(key, heads).transpose(1, 2)
            talk, scale = self._weight(f"{name}.talking_head1", (heads, heads, 1, 1))
            logits = (talk.view(heads, heads) @ logits.view(heads, -1)).view_as(logits)
            weights = _softmax(logits, query.log_scale + key.log_scale + scale - 0.5 * math.log(head_dim))
        talk, scale = self._weight(f"{name}.talking_head2", (heads, heads, 1, 1))
        weights = (talk.view(heads, heads) @ weights.view(heads, -1)).view(heads, positions, positions)
        x = self._attend(weights, scale, x, name, heads, ATTN_RATIO * heads * head_dim)
        if strided:
            x = FeatureMap(_flat(F.interpolate(x.image(), size=full, mode="bilinear")), x.log_scale, full)
        return self._pointwise(self._activated(x), f"{name}.proj.conv", out)

    def _downsample(self, x: FeatureMap, name: str, out: int, attention: bool) -> FeatureMap:
        y = self._conv(x, f"{name}.conv.conv", out, 3, stride=2)
        if attention:
            y = _sum(y, self._downsample_attention(x, f"{name}.attn", out))
        return _normalised(y)

    def _downsample_attention(self, x: FeatureMap, name: str, out: int) -> FeatureMap:
        """EfficientFormerV2's attention whose queries are at half resolution."""
        with torch.no_grad():
            query = self._depthwise(x, f"{name}.q.local", 3, stride=2)
            pooled = x.values.view(*x.size, -1)[::2, ::2].reshape(-1, x.channels)
            query = _sum(FeatureMap(pooled, x.log_scale, query.size), query)
            query = self._pointwise(query, f"{name}.q.proj.conv", DOWNSAMPLE_KEYS)
            key = self._pointwise(x, f"{name}.k.conv", DOWNSAMPLE_KEYS)
            logits = _heads(query, DOWNSAMPLE_HEADS) @ _heads(key, DOWNSAMPLE_HEADS).transpose(1, 2)
            scale = query.log_scale + key.log_scale - 0.5 * math.log(DOWNSAMPLE_KEYS // DOWNSAMPLE_HEADS)
            weights = _softmax(logits, scale)
        x = self._attend(weights, 0.0, x, name, DOWNSAMPLE_HEADS, ATTN_RATIO * DOWNSAMPLE_KEYS, stride=2)
        return self._pointwise(self._activated(x), f"{name}.proj.conv", out)

    def _attend(
        self, weights: Tensor, log_scale: float, x: FeatureMap, name: str, heads: int, channels: int, stride: int = 1
    ) -> FeatureMap:
        """The values, weighted by attention (heads, queries, keys), and beside it by a depthwise convolution."""
        value = self._pointwise(x, f"{name}.v.conv", channels)
        local = self._depthwise(value, f"{name}.v_local.conv", 3, stride)
        attended = (weights @ _heads(value, heads)).transpose(0, 1).reshape(local.values.shape)
        return _sum(FeatureMap(attended, value.log_scale + log_scale, local.size), local)


class _LargeDepthwise(torch.autograd.Function):
    """A depthwise convolution whose gradients are depthwise convolutions again: several times faster on CPUs.

    Theirs for the weight of a 5x5 or 7x7 kernel runs at a tenth of what the forward does (oneDNN 3.13).
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.padding = padding
        return F.conv2d(image, weight, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        image, weight = ctx.saved_tensors
        channels = len(weight)
        by_image = F.conv2d(gradient, weight.flip(2, 3), padding=ctx.padding, groups=channels)
        by_weight = F.conv2d(image, gradient.transpose(0, 1), padding=ctx.padding, groups=channels)
        return by_image, by_weight.transpose(0, 1), None


def _heads(x: FeatureMap, heads: int) -> Tensor:
    """Positions by channels -> heads, positions, channels of a head."""
    return x.values.view(x.values.shape[0], heads, -1).transpose(0, 1)


def _softmax(logits: Tensor, log_scale: float) -> Tensor:
    """Of logits that lack a factor.

    Raises:
        NotSaturatedError: float32 is not enough to tell how they compare.
    """
    largest = logits.amax(-1, keepdim=True)
    if log_scale + math.log(float(largest.min())) < SATURATED:
        raise NotSaturatedError
    return ((logits - largest) * math.exp(min(log_scale, 80.0))).softmax(-1)  # e^80 is within float32's range


def _sum(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    """A skip connection; where `y` is wider, `x` is padded with zeros."""
    growth = y.channels - x.channels
    values = F.pad(x.values, (0, growth)) if growth else x.values
    values = torch.add(values, y.values, alpha=math.exp(y.log_scale - x.log_scale))
    return FeatureMap(values, x.log_scale, x.size)


def _normalised(x: FeatureMap) -> FeatureMap:
    """The same with a largest value of 1. The factor is a constant: gradients are those of what was there before."""
    largest = x.values.detach().amax().item()
    return FeatureMap(x.values * (1 / largest), x.log_scale + math.log(largest), x.size)


def _flat(image: Tensor) -> Tensor:
    """1, C, H, W -> H * W, C"""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])
