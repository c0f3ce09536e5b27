"""Topology: how many operations of each kind an architecture holds, block by block. All that SED looks at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from esformer.errors import ESFormerError
from esformer.genotype import ConvBlock, Genotype

Count: TypeAlias = int | np.ndarray
"""A number, or an array with one for each of many architectures, which are then measured at once."""


@dataclass(frozen=True)
class Block:
    """The optional operations of one block: those that the space chooses, not those that every architecture has.

    Args:
        slots: how many operations the block can hold at most.
        convs: how many convolutions there are of each kernel size.
        pools: how many poolings there are of each window, where a stride divides the window (rounded up); None where
            the space has no pooling.
        skips: how many skip connections; None where the space does not choose any.
        channels: of the output.
        shrink: positions of the input for one of the output: 4 with a stride of 2.
    """

    slots: int
    convs: Mapping[int, Count]
    pools: Mapping[int, Count] | None = None
    skips: Count | None = None
    channels: Count = 1
    shrink: float = 1.0


@dataclass(frozen=True)
class Topology:
    """An architecture as a sequence of blocks; `largest_pool` is the largest pooling window of its *space*, or None."""

    blocks: tuple[Block, ...]
    largest_pool: int | None = None

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ESFormerError("a topology has no blocks; it must have at least one")

    @classmethod
    def of(cls, genotype: Genotype) -> "Topology":
        """An ESFormer's: one optional convolution a block, of the kernel that the gene says, and no pooling or skip."""
        return cls(
            tuple(
                Block(1, {block.kernel if isinstance(block, ConvBlock) else 3: 1}, channels=block.out)
                for stage in genotype.stages
                for block in stage
            )
        )
