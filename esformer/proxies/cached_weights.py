"""The random weights of a genotype's networks, the same for all genotypes (common random numbers)."""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

CHUNK = 16
"""PyTorch draws normal values in blocks of so many; up to a whole block, a longer draw begins as a shorter one does."""


class CachedWeights:
    """The weights of one draw, layer by layer: each layer takes the first of a sequence of values of its own.

    The sequence depends on the key and the layer's name alone. So two genotypes of a search have the same weights in
    the layers that they share (common random numbers: what differs in their scores is due to what differs in them), and
    the values of a layer need to be drawn only once.

    Args:
        key: what sets these weights apart from those of other draws.
        keep: keep what was drawn, for the next genotype.
        device: where the values are wanted; they are drawn on the CPU, so that they are the same everywhere.
    """

    def __init__(self, key: str, keep: bool = False, device: torch.device | str = "cpu") -> None:
        self.key, self.keep, self.device = key, keep, device
        self._drawn: dict[str, Tensor] = {}

    def normal(self, layer: str, shape: Sequence[int]) -> Tensor:
        """Standard normal values for the weight of a layer, float32."""
        return self._draw(layer, math.prod(shape)).view(*shape)

    def magnitudes(self, layer: str, shape: Sequence[int]) -> Tensor:
        """The absolute values of `normal`. If they are kept, this is a view of them and must not be changed."""
        count = math.prod(shape)
        kept = self._drawn.get(layer)
        if kept is None or len(kept) < count:
            # twice as many as ever asked for, so that few are drawn twice
            kept = self._draw(layer, count if kept is None else max(count, 2 * len(kept))).abs_().to(self.device)
            if self.keep:
                self._drawn[layer] = kept
        return kept[:count].view(*shape)

    def _draw(self, layer: str, count: int) -> Tensor:
        digest = hashlib.sha256(f"{self.key}/{layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        blocks = -(-count // CHUNK)
        return torch.randn(blocks * CHUNK, dtype=torch.float32, generator=generator)[:count]


@lru_cache(maxsize=4)
def cached_weights(key: str, device: torch.device | str = "cpu") -> CachedWeights:
    """Weights that are kept from one genotype to the next: those of the last few keys, for a process has one search.

    One draw of S0's layers takes about 60 MB, one of S2's 210 MB.
    """
    return CachedWeights(key, keep=True, device=device)


def forget_cached_weights() -> None:
    """Let go of all that is kept; a GPU's memory goes back to it, for what comes after a search."""
    cached_weights.cache_clear()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def log_std(shape: Sequence[int]) -> float:
    """The logarithm of the standard deviation of a Kaiming-normal weight of this shape (out, in, *kernel)."""
    return 0.5 * math.log(2 / math.prod(shape[1:]))
