"""Adaptive gradient clipping in a fixed number of operators, however many tensors a network has."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor


@torch.no_grad()
def clip_grad_adaptive_(parameters: Iterable[Tensor], clip_factor: float = 0.01, eps: float = 1e-3) -> None:
    """Scale gradients down, unit by unit, to a share of the norm of their weights.

    The same as `timm.utils.agc.adaptive_clip_grad` (https://arxiv.org/abs/2102.06171), which takes ten operators a
    tensor: 6,330 kernels for S2, more than forward and backward launch. A unit is an output channel of a convolution or
    a linear layer, and the whole of a tensor with at most one dimension. Nothing here waits for the device.

    Args:
        parameters: those without a gradient are left out.
        clip_factor: the largest ratio of a gradient's norm to the weights'.
        eps: the least norm of the weights, so that those that start at zero can grow.
    """
    parameters = [p for p in parameters if p.grad is not None]
    if not parameters:
        return
    weights, gradients = [_flat(p) for p in parameters], [_flat(p.grad) for p in parameters if p.grad is not None]
    lengths = _unit_lengths(tuple(p.shape for p in parameters), parameters[0].device)
    flat = torch.cat(gradients)
    largest = _unit_norms(torch.cat(weights), lengths).clamp_(min=eps).mul_(clip_factor)
    norms = _unit_norms(flat, lengths)
    factors = torch.where(norms < largest, 1.0, largest / norms.clamp(min=1e-6)).to(flat.dtype)
    flat *= factors.repeat_interleave(lengths, output_size=len(flat))
    torch._foreach_copy_(gradients, flat.split([len(gradient) for gradient in gradients]))


def _flat(tensor: Tensor) -> Tensor:
    """A view of one dimension, in which units lie one after another; of channels-last tensors in their own order."""
    if not tensor.is_contiguous() and tensor.ndim == 4:
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.view(-1)


def _unit_norms(flat: Tensor, lengths: Tensor) -> Tensor:
    # in float64, for a CPU sums one number after another; unsafe: the check of the lengths would wait for the device
    return torch.segment_reduce(flat.double().square_(), "sum", lengths=lengths, unsafe=True).sqrt_()


@lru_cache(maxsize=8)
def _unit_lengths(shapes: tuple[torch.Size, ...], device: torch.device) -> Tensor:
    """How many weights each unit has. Kept, for a copy to the device at each step would wait for it."""
    units = [(1, shape.numel()) if len(shape) <= 1 else (shape[0], shape[1:].numel()) for shape in shapes]
    counts, lengths = torch.tensor(units).unbind(1)
    return lengths.repeat_interleave(counts, output_size=sum(count for count, _ in units)).to(device)
