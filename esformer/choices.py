"""Table 1 as data: the genes of a network, their two groups, the values each may take, and the sizes S0, S1 and S2.

Everything that the papers leave open about the search space is written down here and nowhere else. The depths and
the places of the Transformer layers are EfficientFormerV2's (section 3.4 follows it); the widths of a stage are the
multiples of 8 from about half to one and a half times its width; the other genes are chosen around its values, so
that EfficientFormerV2 itself is a point of the space.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

from esformer.errors import ESFormerError

Gene = Literal["ffn", "kernel", "heads", "out", "ratio", "head_dim"]
Group = Literal["topology", "size", "all"]

GROUPS: dict[str, tuple[Gene, ...]] = {
    "topology": ("ffn", "kernel", "heads"),
    "size": ("out", "ratio", "head_dim"),
    "all": ("ffn", "kernel", "heads", "out", "ratio", "head_dim"),
}

CONV_GENES: tuple[Gene, ...] = ("ffn", "kernel", "out", "ratio")
"""The genes of a convolution block."""
TRANSFORMER_GENES: tuple[Gene, ...] = ("ffn", "heads", "out", "ratio", "head_dim")
"""The genes of a Transformer layer; the kernel of its FFN is always 3 (section 3.4)."""


@dataclass(frozen=True)
class StageChoices:
    """One of the four stages: how many blocks, how many of the last are Transformer layers, and their widths."""

    blocks: int
    transformers: int
    out: tuple[int, ...]

    def is_transformer(self, block: int) -> bool:
        return block >= self.blocks - self.transformers


@dataclass(frozen=True)
class Choices:
    """What the genes of one search space may be."""

    space: str
    stages: tuple[StageChoices, ...]
    ffn: tuple[str, ...] = ("ibn", "convnext")
    kernel: tuple[int, ...] = (3, 5, 7)
    ratio: tuple[int, ...] = (2, 3, 4, 5, 6)
    heads: tuple[int, ...] = (4, 6, 8, 10, 12)
    head_dim: tuple[int, ...] = (16, 24, 32, 40, 48)

    def of(self, stage: int, block: int) -> dict[Gene, tuple[str, ...] | tuple[int, ...]]:
        """Each gene of one block (counted from 0) and the values it may take.

        Args:
            stage: counted from 0.
            block: within its stage, counted from 0.
        """
        genes = TRANSFORMER_GENES if self.stages[stage].is_transformer(block) else CONV_GENES
        return {gene: self.stages[stage].out if gene == "out" else getattr(self, gene) for gene in genes}

    @cached_property
    def options(self) -> list[list[dict[Gene, tuple[str, ...] | tuple[int, ...]]]]:
        """What `of` gives for every block, stage by stage; made once, since every genotype is checked against it."""
        return [[self.of(s, b) for b in range(stage.blocks)] for s, stage in enumerate(self.stages)]


@dataclass(frozen=True)
class Size:
    """One size: its networks, and what they may cost. Everything that knows sizes asks this.

    Args:
        stages: of its networks.
        params: at most, with the classifier (section 4.2).
        macs: at most, of an image of 224 pixels with 1000 classes (Table 3).
        reference: the shipped genotype that a search must beat, with whose MACs those of other images are scaled.
    """

    stages: tuple[StageChoices, ...]
    params: int
    macs: int
    reference: str


def _widths(low: int, high: int) -> tuple[int, ...]:
    return tuple(range(low, high + 1, 8))


_SIZES = {
    "S0": Size(
        stages=(  # EfficientFormerV2's widths: 32, 48, 96, 176
            StageChoices(2, 0, _widths(16, 48)),
            StageChoices(2, 0, _widths(24, 72)),
            StageChoices(6, 2, _widths(48, 144)),
            StageChoices(4, 2, _widths(88, 264)),
        ),
        params=3_500_000,
        macs=410_000_000,  # Table 3 says 0.4 G, also of EfficientFormerV2-S0: that has 0.4069, and is to be allowed
        reference="efficientformerv2_s0",
    ),
    "S1": Size(
        stages=(  # 32, 48, 120, 224
            StageChoices(3, 0, _widths(16, 48)),
            StageChoices(3, 0, _widths(24, 72)),
            StageChoices(9, 2, _widths(56, 184)),
            StageChoices(6, 2, _widths(112, 336)),
        ),
        params=6_000_000,
        macs=900_000_000,
        reference="efficientformerv2_s1",
    ),
    "S2": Size(
        stages=(  # 32, 64, 144, 288
            StageChoices(4, 0, _widths(16, 48)),
            StageChoices(4, 0, _widths(32, 96)),
            StageChoices(12, 4, _widths(72, 216)),
            StageChoices(8, 4, _widths(144, 432)),
        ),
        params=12_500_000,
        macs=1_400_000_000,
        reference="efficientformerv2_s2",
    ),
}

SIZES = tuple(_SIZES)
EXTENDED = "-extended"
SPACES = tuple(size + suffix for suffix in ("", EXTENDED) for size in SIZES)


def size_of(name: str) -> Size:
    """A size by its name.

    Args:
        name: such as S0.

    Raises:
        ESFormerError: there is none of this name.
    """
    if name not in _SIZES:
        raise ESFormerError(f"there is no size {name!r}; there are {', '.join(SIZES)}")
    return _SIZES[name]


@cache
def choices_of(space: str) -> Choices:
    """The choices of a space by its name: a size, or a size and `-extended` (Table 5: with the residual bottleneck).

    Args:
        space: its name.
    """
    size = space.removesuffix(EXTENDED)
    if size not in _SIZES:
        raise ESFormerError(f"there is no search space {space!r}; there are {', '.join(SPACES)}")
    plain = Choices(space, _SIZES[size].stages)
    return plain if space == size else replace(plain, ffn=(*plain.ffn, "bottleneck"))


def bottleneck_width(out: int, ratio: int) -> int:
    """Channels inside a residual bottleneck: `out / ratio` to the nearest multiple of 4, at least 4.

    Args:
        out: channels behind the block.
        ratio: the gene.
    """
    return max(4, (out + 2 * ratio) // (4 * ratio) * 4)
