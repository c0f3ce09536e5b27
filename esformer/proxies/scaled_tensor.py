"""Tensors whose range has no end: each carries a power of two beside its values.

Without norms, activations and gradients of a deep network leave float64's range: a gate, or an attention without a
softmax, multiplies two activations, so that their logarithm doubles from block to block. PyTorch's own operations and
differentiation run on a `ScaledTensor` as on any other tensor; it keeps its mantissa moderate and counts the factor
that this lacks. Factors are powers of two, so what fits into float64 comes out as it does there, but for two things:
what is below float64's range beside the largest value of its tensor is 0, and so is what a softmax's gradient has of
rounding.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

MODERATE = 48
"""Values are left alone while the largest is within 2^-48 and 2^48: their products fit into float32 too, to which some
networks convert."""

ROUNDING = 1e-10
"""A sum of terms that cancel to this share of them is 0."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations f with f(c x) = c f(x) for c > 0, where x is the first argument: the others say where, or how.
_HOMOGENEOUS = _names(
    """
    view _unsafe_view reshape permute transpose t expand slice select split split_with_sizes unbind unsqueeze
    squeeze clone detach alias contiguous sum mean amax amin max min relu leaky_relu abs neg constant_pad_nd
    reflection_pad2d replication_pad2d avg_pool2d _adaptive_avg_pool2d max_pool2d_with_indices upsample_nearest2d
    upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa roll flip index
    index_select gather im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle unfold cumsum _to_copy repeat
    diagonal linalg_vector_norm threshold_backward leaky_relu_backward slice_backward select_backward
    avg_pool2d_backward unfold_backward _adaptive_avg_pool2d_backward max_pool2d_with_indices_backward
    upsample_nearest2d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward
    value_selecting_reduction_backward as_strided constant_pad_nd_backward reflection_pad2d_backward
    replication_pad2d_backward index_backward _reshape_alias lift_fresh
    """
)
_MULTILINEAR = {"mul", "mm", "bmm", "mv", "dot"}
# Operations with f(c x, c y, ...) = c f(x, y, ...): on tensors that lack the same factor.
_ALIGNED = _names(
    """
    stack where maximum minimum index_put slice_scatter select_scatter index_add scatter_add copy
    """
)
_NEW = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}


class ScaledTensor(Tensor):
    """`mantissa * 2**exponent`, and a tensor like any other.

    Operations that are not known here are done on the product, which may be infinite.

    Args:
        mantissa: a floating-point tensor.
        exponent: of 2, any whole number.
    """

    mantissa: Tensor
    exponent: int

    @staticmethod
    def __new__(cls, mantissa: Tensor, exponent: int = 0) -> "ScaledTensor":
        return Tensor._make_wrapper_subclass(
            cls, mantissa.shape, strides=mantissa.stride(), dtype=mantissa.dtype, device=mantissa.device
        )

    def __init__(self, mantissa: Tensor, exponent: int = 0) -> None:
        self.mantissa, self.exponent = mantissa, exponent

    def __repr__(self) -> str:  # type: ignore[override]
        return f"ScaledTensor({self.mantissa!r} * 2**{self.exponent})"

    def product(self) -> Tensor:
        """An ordinary tensor; infinite where the range of its dtype ends."""
        return _shift(self.mantissa, self.exponent)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        if not name.endswith("_") or name.startswith("__"):
            return _compute(name, func, args, kwargs)
        # In place, on what others may be views of: its factor stays.
        name = name[:-1]
        packet = getattr(torch.ops.aten, name)
        result = args[1] if name == "copy" else _compute(name, packet, args, kwargs)
        target = args[0]
        if isinstance(target, ScaledTensor):
            target.mantissa.copy_(_shift(_values(result), _exponent(result) - target.exponent))
        else:
            target.copy_(_product(result))
        return target


def _compute(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if handler := _HANDLERS.get(name):
        return handler(func, *args, **kwargs)
    if name in _HOMOGENEOUS:
        return _wrapped(func(*tree_map(_values, args), **tree_map(_values, kwargs)), _exponent(args[0]))
    if name in _MULTILINEAR:
        return _moderate(func(*map(_values, args), **kwargs), sum(map(_exponent, args)))
    if name in _ALIGNED:
        return _aligned(func, args, kwargs)
    result = func(*tree_map(_product, args), **tree_map(_product, kwargs))
    return result if name in _NEW else _wrapped(result, 0)


def _values(x: Any) -> Any:
    return x.mantissa if isinstance(x, ScaledTensor) else x


def _exponent(x: Any) -> int:
    return x.exponent if isinstance(x, ScaledTensor) else 0


def _product(x: Any) -> Any:
    return x.product() if isinstance(x, ScaledTensor) else x


def _wrapped(result: Any, exponent: int) -> Any:
    """Every floating-point tensor of a result, with the factor that it lacks."""

    def wrap(x: Any) -> Any:
        return ScaledTensor(x, exponent) if isinstance(x, Tensor) and x.is_floating_point() else x

    return tree_map(wrap, result)


def _shift(values: Tensor, exponent: int) -> Tensor:
    """Values * 2**exponent"""
    if exponent == 0:
        return values
    exponent = max(-2000, min(exponent, 2000))  # beyond, all is 0 or infinite, and 2.0**1024 is no number
    half = exponent // 2
    return (values.double() * 2.0**half * 2.0 ** (exponent - half)).to(values.dtype)


def _moderate(values: Tensor, exponent: int) -> ScaledTensor:
    """The same, with a largest value near 1 if it left what is moderate."""
    largest = float(values.detach().abs().amax()) if values.numel() else 0.0
    if largest and math.isfinite(largest) and abs(excess := math.frexp(largest)[1]) > MODERATE:
        values, exponent = _shift(values, -excess), exponent + excess
    return ScaledTensor(values, exponent)


def _aligned(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Bring everything that adds up, plain numbers too, to the largest factor; smaller terms may vanish."""
    leaves, spec = tree_flatten(args)
    terms = [i for i, x in enumerate(leaves) if _adds_up(x)]
    # a zero takes any factor: it must not set one, or what is tiny beside 1 would vanish beside it
    present = [_exponent(leaves[i]) for i in terms if not _is_zero(leaves[i])]
    exponent = max(present, default=0)
    for i in terms:
        x = leaves[i]
        if isinstance(x, Tensor):
            leaves[i] = _shift(_values(x), _exponent(x) - exponent)
        elif x:
            leaves[i] = math.ldexp(x, -exponent) if exponent > -900 else math.copysign(math.inf, x)
    result = func(*tree_unflatten(leaves, spec), **kwargs)
    if isinstance(result, Tensor) and result.is_floating_point():
        return _moderate(result, exponent)
    return _wrapped(result, exponent)


def _adds_up(x: Any) -> bool:
    return isinstance(x, float | ScaledTensor) or (isinstance(x, Tensor) and x.is_floating_point())


def _is_zero(x: Any) -> bool:
    return x == 0 if isinstance(x, float) else not bool(_values(x).any())


def _cat(func: Any, tensors: list[Tensor], dim: int = 0) -> Any:
    return _aligned(func, (tensors, dim), {})


def _with_scalar(func: Any, x: Any, y: Any, **kwargs: Any) -> Any:
    """Of two terms, either of which may be a whole number, as in x + 1."""
    number = {k: v for k, v in kwargs.items() if k != "alpha"}
    return _aligned(func, tuple(float(v) if isinstance(v, int) else v for v in (x, y)), kwargs | number)


def _masked_fill(func: Any, x: Any, mask: Tensor, value: Any) -> Any:
    return _aligned(func, (x, mask, float(value) if isinstance(value, int) else value), {})


def _divide(func: Any, x: Any, y: Any, **kwargs: Any) -> ScaledTensor:
    return _moderate(func(_values(x), _values(y), **kwargs), _exponent(x) - _exponent(y))


def _power(func: Any, x: Any, power: Any = None) -> ScaledTensor:
    """x**p, a square root or its reciprocal: the exponent must be even for these."""
    p = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1}.get(func._schema.name.removeprefix("aten::"), power)
    odd = x.exponent % 2
    values, exponent = _shift(x.mantissa, odd), x.exponent - odd
    if not isinstance(p, int | float) or not float(2 * p).is_integer():
        return ScaledTensor(func(x.product(), power), 0)
    result = func(values) if power is None else func(values, power)
    return _moderate(result, round(exponent * p))


def _convolution(func: Any, x: Any, weight: Any, bias: Any, *how: Any) -> Any:
    out = _moderate(func(_values(x), _values(weight), None, *how), _exponent(x) + _exponent(weight))
    if bias is None or _is_zero(bias):
        return out
    return _aligned(torch.ops.aten.add.Tensor, (out, bias.view(-1, *[1] * (out.ndim - 2))), {})


def _convolution_backward(func: Any, gradient: Any, x: Any, weight: Any, *how: Any) -> Any:
    by_x, by_weight, by_bias = func(_values(gradient), _values(x), _values(weight), *how)
    g = _exponent(gradient)
    return (
        None if by_x is None else _moderate(by_x, g + _exponent(weight)),
        None if by_weight is None else _moderate(by_weight, g + _exponent(x)),
        None if by_bias is None else _moderate(by_bias, g),
    )


def _add_product(func: Any, x: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Any:
    """Addmm and baddbmm"""
    product = _moderate(_values(a) @ _values(b) * alpha, _exponent(a) + _exponent(b))
    if beta == 0 or _is_zero(x):
        return product
    scaled = ScaledTensor(_values(x) * beta, _exponent(x))
    return _aligned(torch.ops.aten.add.Tensor, (scaled, product), {})


def _softmax(func: Any, x: Any, dim: int, *how: Any) -> Any:
    """Of logits of any size: 2^1000 times the smallest gap between two float64 values is one-hot but for exact ties."""
    largest = x.mantissa.amax(dim, keepdim=True)
    gaps = x.mantissa - torch.where(largest.isinf(), 0, largest)  # where all is masked
    return ScaledTensor(func(_shift(gaps, min(x.exponent, 1000)), dim, *how), 0)


def _softmax_backward(func: Any, gradient: Any, output: Any, dim: int, dtype: torch.dtype) -> Any:
    """The gradient p (g - sum of p g): exactly 0 where all inputs are equal, or one is far above the others.

    The rounding errors of that difference would be multiplied by queries and keys as large as the logits, layer after
    layer.
    """
    g, p = _values(gradient), _product(output)
    difference = g - (p * g).sum(dim, keepdim=True)
    scale = g.abs().amax(dim, keepdim=True)
    return _moderate(p * torch.where(difference.abs() <= ROUNDING * scale, 0, difference), _exponent(gradient))


def _log(func: Any, x: Any) -> Any:
    return ScaledTensor(func(x.mantissa) + x.exponent * math.log(2), 0)


def _log1p(func: Any, x: Any) -> Any:
    """Of non-negative values: log x where 1 is nothing beside it."""
    log = x.mantissa.log() + x.exponent * math.log(2)
    return ScaledTensor(torch.where(log > 40, log, x.product().log1p()), 0)


_HANDLERS: dict[str, Callable[..., Any]] = {
    "add": _with_scalar,
    "sub": _with_scalar,
    "rsub": _with_scalar,
    "clamp_min": _with_scalar,
    "clamp_max": _with_scalar,
    "masked_fill": _masked_fill,
    "eq": _with_scalar,
    "ne": _with_scalar,
    "lt": _with_scalar,
    "le": _with_scalar,
    "gt": _with_scalar,
    "ge": _with_scalar,
    "cat": _cat,
    "div": _divide,
    "pow": _power,
    "sqrt": _power,
    "rsqrt": _power,
    "reciprocal": _power,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "addmm": _add_product,
    "baddbmm": _add_product,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "_softmax_backward_data": _softmax_backward,
    "log": _log,
    "log1p": _log1p,
    "_fused_sdp_choice": lambda *_args, **_kwargs: 0,  # the plain way, of matrix products
}
