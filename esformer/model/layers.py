"""The parts of a network whose latencies add up to its own, and those of a size that are worth measuring.

There are millions of blocks in a space, in every combination of kind, widths, kernel, ratio, heads and resolution. Of
each kind at each resolution some are drawn, over all of its widths; `latency_table` predicts the others from them.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, product

from esformer.choices import Choices
from esformer.genotype import Block, ConvBlock, Genotype, TransformerLayer
from esformer.space import SearchSpace

PARTS = ("stem", "downsampling", "attention downsampling", "block", "strided block", "classifier")
"""What a layer may be: the last downsampling has attention, and stage 3's attention runs at stride 2."""
DRAWN = 4
"""Blocks of each FFN and kernel in each stage: two that keep the width, once and several times in a row, two wider."""
DRAWN_TRANSFORMERS = 16
"""Transformer layers in each stage that has any."""
DRAWN_DOWNSAMPLINGS = 6
REPEATED = 3
"""How many times in a row; what one block takes is told from what the run itself takes by the difference."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A part of a network.

    Args:
        part: one of `PARTS`.
        chs: channels that come in.
        out: channels that come out; of the classifier its classes.
        pixels: height and width of what comes in.
        block: the genes, if it is a block.
    """

    part: str
    chs: int
    out: int
    pixels: int
    block: Block | None = None


def layers(genotype: Genotype, img_size: int = 224, num_classes: int = 1000) -> list[Layer]:
    """All parts of a network, in the order in which an image passes them.

    Args:
        genotype: the architecture.
        img_size: height and width of the image in pixels.
        num_classes: of the classifier.
    """
    out = genotype.stages[0][0].out
    found = [Layer("stem", 3, out, img_size)]
    pixels = -(-img_size // 4)
    for number, stage in enumerate(genotype.stages):
        if number > 0:
            chs, out = out, stage[0].out
            found.append(Layer(_downsampling(number), chs, out, pixels))
            pixels = -(-pixels // 2)
        for block in stage:
            chs, out = out, block.out
            found.append(Layer(_block(number, block), chs, out, pixels, block))
    return [*found, Layer("classifier", out, num_classes, pixels)]


def _downsampling(stage: int) -> str:
    return "attention downsampling" if stage == 3 else "downsampling"


def _block(stage: int, block: Block) -> str:
    return "strided block" if stage == 2 and isinstance(block, TransformerLayer) else "block"


def drawn_layers(choices: Choices, img_size: int, num_classes: int, seed: int = 0) -> list[tuple[Layer, int]]:
    """Layers to measure, from which all others are predicted; with each, how many of them in a row.

    Args:
        choices: of the space.
        img_size: height and width of the image in pixels.
        num_classes: of the classifier.
        seed: of the draws.
    """
    rng = random.Random(f"layers of {choices.space}/{seed}")
    first, last = choices.stages[0].out, choices.stages[-1].out
    found = [(Layer("stem", 3, out, img_size), 1) for out in first]
    pixels = -(-img_size // 4)
    for number, stage in enumerate(choices.stages):
        if number > 0:
            pairs = _pairs(rng, choices.stages[number - 1].out, stage.out, DRAWN_DOWNSAMPLINGS)
            found += [(Layer(_downsampling(number), chs, out, pixels), 1) for chs, out in pairs]
            pixels = -(-pixels // 2)
        for block, chs, times in chain(_conv_blocks(rng, choices, number), _transformers(rng, choices, number)):
            found.append((Layer(_block(number, block), chs, block.out, pixels, block), times))
    return [*found, *((Layer("classifier", chs, num_classes, pixels), 1) for chs in _spread(rng, last, 5))]


def _conv_blocks(rng: random.Random, choices: Choices, number: int) -> Iterator[tuple[Block, int, int]]:
    """Blocks, the channels that come in, and how many in a row."""
    stage = choices.stages[number]
    if stage.blocks == stage.transformers:
        return
    for ffn, kernel in product(choices.ffn, choices.kernel):
        ratios = cycle(rng.sample(choices.ratio, len(choices.ratio)))
        for chs, out, times in _widths(rng, stage.out, DRAWN):
            yield ConvBlock(ffn, kernel, out, next(ratios)), chs, times


def _transformers(rng: random.Random, choices: Choices, number: int) -> Iterator[tuple[Block, int, int]]:
    stage = choices.stages[number]
    if not stage.transformers:
        return
    kinds = cycle(rng.sample(choices.ffn, len(choices.ffn)))
    ratios, heads, dims = (cycle(rng.sample(one, len(one))) for one in (choices.ratio, choices.heads, choices.head_dim))
    for index, (chs, out, times) in enumerate(_widths(rng, stage.out, DRAWN_TRANSFORMERS)):
        if index % len(choices.head_dim) == 0:  # else the same would meet again
            next(dims)
            next(ratios), next(ratios)
        yield TransformerLayer(next(kinds), next(heads), out, next(ratios), next(dims)), chs, times


def _widths(rng: random.Random, options: Sequence[int], count: int) -> Iterator[tuple[int, int, int]]:
    """Channels in and out and times in a row: half of them equal, once or several times, half growing."""
    for index, chs in enumerate(_spread(rng, options, count // 2)):
        yield chs, chs, (1, REPEATED)[index % 2]
    for chs, out in _pairs(rng, options, options, count - count // 2):
        yield chs, out, 1


def _pairs(rng: random.Random, narrow: Sequence[int], wide: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """Widths of which the second is no smaller."""
    for chs in _spread(rng, narrow, count):
        yield chs, rng.choice([out for out in wide if out > chs] or [wide[-1]])


def _spread(rng: random.Random, options: Sequence[int], count: int) -> list[int]:
    """Options drawn one from each of as many equal ranges, in any order."""
    bounds = [len(options) * index / count for index in range(count + 1)]
    drawn = [options[min(int(rng.uniform(*bounds[i : i + 2])), len(options) - 1)] for i in range(count)]
    return rng.sample(drawn, count)


def drawn_networks(space: SearchSpace, count: int, purpose: str, seed: int = 0) -> list[Genotype]:
    """Genotypes to measure as a whole: uniform ones, and every other one crossed with the narrowest, so small as well.

    Args:
        space: the genotypes there are.
        count: how many.
        purpose: networks of one purpose are drawn apart from those of another.
        seed: of the draws.
    """
    rng = random.Random(f"{purpose} of {space.name}/{seed}")
    narrow = space.build({place: options[0] for place, options in space.options.items()})
    drawn = [space.sample(rng) for _ in range(count)]
    return [space.crossover(one, narrow, rng) if index % 2 else one for index, one in enumerate(drawn)]
