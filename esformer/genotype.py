"""What an architecture is: one frozen value for every gene, readable and editable as YAML or JSON."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from esformer.choices import SPACES, Choices, choices_of
from esformer.errors import ESFormerError
from esformer.files import FileError, read_json, read_yaml, write_text

FORMAT = 1
"""The version of the file format, written as `genotype: 1`."""
_SHIPPED = Path(__file__).parent / "genotypes"


class GenotypeError(ESFormerError):
    """A genotype that is not one: says which block, which gene, what it is and what would be allowed."""


@dataclass(frozen=True, slots=True)
class ConvBlock:
    """A convolution block: an FFN with a depthwise (or, in the bottleneck, a dense) convolution of size `kernel`."""

    ffn: str
    kernel: int
    out: int
    ratio: int

    def genes(self) -> dict[str, str | int]:
        """Every gene by its name, in the order of the fields; a search needs it too often for `asdict`."""
        return {"ffn": self.ffn, "kernel": self.kernel, "out": self.out, "ratio": self.ratio}


@dataclass(frozen=True, slots=True)
class TransformerLayer:
    """Self-attention of `heads` heads with keys of `head_dim` channels, then an FFN with a 3x3 convolution."""

    ffn: str
    heads: int
    out: int
    ratio: int
    head_dim: int

    def genes(self) -> dict[str, str | int]:
        """Every gene by its name, in the order of the fields."""
        return {"ffn": self.ffn, "heads": self.heads, "out": self.out, "ratio": self.ratio, "head_dim": self.head_dim}


Block = ConvBlock | TransformerLayer


@dataclass(frozen=True)
class Genotype:
    """An architecture of one search space: its blocks, stage by stage. Hashable, equal by value, always valid.

    Args:
        space: name of the search space, such as `S0` or `S0-extended`.
        stages: the blocks of each of the four stages, from the image to the classifier.

    Raises:
        GenotypeError: a gene is missing, unknown, of a wrong type or not allowed, or widths decrease.

    Examples:
        >>> genotype = Genotype.shipped("efficientformerv2_s0")
        >>> genotype.space, genotype.stages[0][0]
        ('S0', ConvBlock(ffn='ibn', kernel=3, out=32, ratio=4))
        >>> genotype.save("mine.yaml")
        >>> Genotype.load("mine.yaml") == genotype == Genotype.from_dict(genotype.to_dict())
        True
    """

    space: str
    stages: tuple[tuple[Block, ...], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.space, str) or self.space not in SPACES:
            raise GenotypeError(f"space is {_show(self.space)}; it must be one of {', '.join(SPACES)}")
        if not isinstance(self.stages, tuple) or not all(isinstance(stage, tuple) for stage in self.stages):
            raise GenotypeError("stages: must be a tuple of tuples of blocks (Genotype.from_dict takes lists)")
        check(self.stages, choices_of(self.space))

    def blocks(self) -> Iterator[Block]:
        """All blocks in the order in which an image passes them."""
        return (block for stage in self.stages for block in stage)

    @cached_property
    def digest(self) -> str:
        """A name for the genotype that is the same on every machine: 16 hexadecimal digits."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for YAML, JSON or a checkpoint."""
        stages = [[block.genes() for block in stage] for stage in self.stages]
        return {"genotype": FORMAT, "space": self.space, "stages": stages}

    @classmethod
    def from_dict(cls, d: Any) -> "Genotype":
        """The genotype that `to_dict` gave.

        Args:
            d: plain containers, as a YAML or JSON file gives them.

        Raises:
            GenotypeError: anything in it is not as `to_dict` writes it.
        """
        _check_keys(d, ("genotype", "space", "stages"), "the genotype")
        if type(d["genotype"]) is not int or d["genotype"] != FORMAT:
            raise GenotypeError(f"genotype (the version of the format) is {_show(d['genotype'])}; it must be {FORMAT}")
        if not isinstance(d["space"], str) or d["space"] not in SPACES:
            raise GenotypeError(f"space is {_show(d['space'])}; it must be one of {', '.join(SPACES)}")
        choices = choices_of(d["space"])
        _check_list(d["stages"], len(choices.stages), "stages", f"stages in space {choices.space}")
        stages = []
        for s, (stage, wanted) in enumerate(zip(d["stages"], choices.stages, strict=True)):
            _check_list(stage, wanted.blocks, f"stage {s + 1}", f"blocks in space {choices.space}")
            for b, block in enumerate(stage):
                _check_keys(block, tuple(choices.options[s][b]), _place(s, b))
            kinds = [TransformerLayer if wanted.is_transformer(b) else ConvBlock for b in range(wanted.blocks)]
            stages.append(tuple(kind(**block) for kind, block in zip(kinds, stage, strict=True)))
        return cls(d["space"], tuple(stages))

    def save(self, path: str | os.PathLike[str], comment: str = "") -> None:
        """Write the genotype to a `.json` file, or as YAML under any other name, headed by `comment`.

        Args:
            path: the file; it is replaced as a whole, or not at all.
            comment: lines for people, at the head of YAML; JSON has no place for them.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=1) + "\n"
        else:
            head = "".join(f"# {line}\n" for line in comment.splitlines())
            text = head + yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120)
        write_text(path, text)

    @classmethod
    def shipped(cls, name: str) -> "Genotype":
        """A genotype that comes with this package, such as `esformer_s0` or `efficientformerv2_s2`.

        Args:
            name: small letters, as `shipped_names` lists them.

        Raises:
            GenotypeError: there is none of this name; the message lists those that there are.
        """
        if name not in shipped_names():
            raise GenotypeError(f"no genotype {name!r} is shipped; there are {', '.join(shipped_names())}")
        return cls.load(_SHIPPED / f"{name}.yaml")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Genotype":
        """Read a genotype file (JSON if it ends in `.json`, else YAML). Nothing in the file is ever executed.

        Args:
            path: the file.

        Raises:
            GenotypeError: the file cannot be read or is not a genotype; the message names the file and the gene.
        """
        path = Path(path)
        try:
            content = (read_json if path.suffix == ".json" else read_yaml)(path)
        except FileError as error:
            raise GenotypeError(str(error)) from None
        try:
            return cls.from_dict(content)
        except GenotypeError as error:
            raise GenotypeError(f"{path}: is not a genotype: {error}") from None


def shipped_names() -> list[str]:
    """The names of the genotypes that come with this package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def notation(genotype: Genotype) -> str:
    """A genotype as one line: the space, then its blocks, with `/` between stages.

    A convolution block is FFN, kernel, out and ratio, such as `ibn.3.32.4`; a Transformer layer FFN, heads, out, ratio
    and head_dim, such as `ibn.8.96.4.32`.

    Args:
        genotype: any.
    """
    stages = (" ".join(".".join(map(str, block.genes().values())) for block in stage) for stage in genotype.stages)
    return f"{genotype.space}: {' / '.join(stages)}"


def parse(text: str) -> Genotype:
    """The genotype that `notation` wrote.

    Args:
        text: such a line.

    Raises:
        GenotypeError: it wrote no such line.
    """
    space, _, rest = text.partition(": ")
    try:
        stages = zip(rest.split(" / "), choices_of(space).stages, strict=True)
        return Genotype(
            space,
            tuple(
                tuple(_block(block, choices.is_transformer(b)) for b, block in enumerate(stage.split(" ")))
                for stage, choices in stages
            ),
        )
    except (TypeError, ValueError) as error:
        raise GenotypeError(
            f"{text[:80]!r} must be a genotype, such as 'S0: ibn.3.32.4 ...': {str(error)[:300]}"
        ) from None


def _block(text: str, transformer: bool) -> Block:
    ffn, *numbers = text.split(".")
    return (TransformerLayer if transformer else ConvBlock)(ffn, *map(int, numbers))


def parse_block(text: str) -> Block:
    """The block that `notation` wrote: five genes are a Transformer layer's, four a convolution block's.

    Args:
        text: such as `ibn.3.32.4`.

    Raises:
        GenotypeError: it is no block of any space.
    """
    try:
        block = _block(text, text.count(".") == 4)
    except (TypeError, ValueError) as error:
        raise GenotypeError(f"{text[:80]!r} must be a block, such as 'ibn.3.32.4': {str(error)[:300]}") from None
    choices = choices_of(SPACES[-1])
    for gene, value in block.genes().items():
        if gene != "out" and value not in getattr(choices, gene):
            raise GenotypeError(f"{text[:80]!r}: {gene} is {_show(value)}; it must be {_list(getattr(choices, gene))}")
    return block


def unchecked(space: str, stages: tuple[tuple[Block, ...], ...]) -> Genotype:
    """The genotype of blocks that are known to be a network of the space; who calls this vouches for them.

    For a search space, whose draws are valid by construction and which makes far more genotypes than are ever scored.
    """
    genotype = object.__new__(Genotype)
    vars(genotype).update(space=space, stages=stages)  # a frozen dataclass refuses assignments
    return genotype


def check(stages: Any, choices: Choices) -> None:
    """Raise GenotypeError unless the blocks of `stages` are a network of the space of `choices`."""
    _check_list(stages, len(choices.stages), "stages", f"stages in space {choices.space}")
    narrowest = 0
    for s, (stage, wanted, options) in enumerate(zip(stages, choices.stages, choices.options, strict=True)):
        _check_list(stage, wanted.blocks, f"stage {s + 1}", f"blocks in space {choices.space}")
        for b, (block, genes) in enumerate(zip(stage, options, strict=True)):
            kind = TransformerLayer if wanted.is_transformer(b) else ConvBlock
            if type(block) is not kind:
                raise GenotypeError(
                    f"{_place(s, b)}: is a {type(block).__name__}; in space {choices.space} it is a {kind.__name__}"
                )
            for gene, allowed in genes.items():
                value = getattr(block, gene)
                if type(value) is not type(allowed[0]) or value not in allowed:
                    raise GenotypeError(
                        f"{_place(s, b)}: {gene} is {_show(value)}; space {choices.space} allows {_list(allowed)}"
                    )
            if block.out < narrowest:
                raise GenotypeError(
                    f"{_place(s, b)}: out is {block.out}, less than the {narrowest} of the block before;"
                    " widths never decrease along the network"
                )
            narrowest = block.out


def _place(stage: int, block: int) -> str:
    return f"stage {stage + 1}, block {block + 1}"


def _check_list(value: Any, length: int, name: str, what: str) -> None:
    if not isinstance(value, list | tuple):
        raise GenotypeError(f"{name}: is {_show(value)}; it must be a list of {length} {what}")
    if len(value) != length:
        raise GenotypeError(f"{name}: has {len(value)} entries; there are {length} {what}")


def _check_keys(d: Any, wanted: tuple[str, ...], name: str) -> None:
    if not isinstance(d, dict):
        raise GenotypeError(f"{name}: is {_show(d)}; it must be a mapping with the keys {_list(wanted, 'and')}")
    if unknown := [key for key in d if key not in wanted]:
        raise GenotypeError(f"{name}: has an unknown key {_show(unknown[0])}; its keys are {_list(wanted, 'and')}")
    if missing := [key for key in wanted if key not in d]:
        raise GenotypeError(f"{name}: lacks {missing[0]!r}; its keys are {_list(wanted, 'and')}")


def _show(value: Any) -> str:
    """A value from an untrusted file, short enough for a message."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer beyond what Python prints, or lists without end
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _list(values: tuple[Any, ...], word: str = "or") -> str:
    steps = {b - a for a, b in pairwise(values) if isinstance(a, int)}
    if len(values) > 5 and len(steps) == 1:
        return f"{values[0]} to {values[-1]} in steps of {steps.pop()}"
    *head, last = map(str, values)
    return f"{', '.join(head)} {word} {last}" if head else last
