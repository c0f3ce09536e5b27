"""What each part of a network costs, for people who want to know where its parameters and MACs are."""

from dataclasses import dataclass
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

from esformer.genotype import Block, Genotype
from esformer.model.cost import Cost, cost


@dataclass(frozen=True)
class Part:
    """The stem, a downsampling, a block or the classifier.

    Args:
        name: such as `stage 1, block 2`.
        block: its genes, if it is a block.
        shape: of what comes out: channels, height, width; of the classifier the classes alone.
        cost: parameters and MACs.
    """

    name: str
    block: Block | None
    shape: tuple[int, ...]
    cost: Cost


def parts(genotype: Genotype, img_size: int = 224, num_classes: int = 1000) -> list[Part]:
    """The parts in the order in which an image passes them; their costs add up to `cost(...)`.

    A block costs what the network until there costs more with it than without. The first block of a stage keeps the
    width, so a second one like it costs as much; what is left of the first one is the downsampling, or the stem.

    Args:
        genotype: the architecture.
        img_size: height and width of the image in pixels.
        num_classes: of the classifier.
    """
    found: list[Part] = []
    before: list[list[Block]] = []
    spent = Cost(0, 0)
    sizes = list(accumulate(range(5), lambda size, _: -(-size // 2), initial=img_size))[2:]
    for number, (stage, size) in enumerate(zip(genotype.stages, sizes, strict=False), 1):
        for place, block in enumerate(stage, 1):
            shape = (block.out, size, size)
            until = _cost([*before, list(stage[:place])], size, img_size)
            if place == 1:
                own = _less(_cost([*before, [block, block]], size, img_size), until)
                name = "stem" if number == 1 else f"downsampling {number - 1}"
                found.append(Part(name, None, shape, _less(_less(until, spent), own)))
            else:
                own = _less(until, spent)
            found.append(Part(f"stage {number}, block {place}", block, shape, own))
            spent = until
        before.append(list(stage))
    found.append(Part("classifier", None, (num_classes,), _less(cost(genotype, img_size, num_classes), spent)))
    return found


def _cost(stages: list[list[Block]], size: int, img_size: int) -> Cost:
    """Of the network until there, without its classifier: of none of its classes, nor of the norm before them."""
    network: Any = SimpleNamespace(stages=stages)  # `cost` reads nothing else; a genotype has all of its stages
    out = stages[-1][-1].out
    return _less(cost(network, img_size, num_classes=0), Cost(2 * out, 2 * out * size * size))


def _less(a: Cost, b: Cost) -> Cost:
    return Cost(a.params - b.params, a.macs - b.macs)
