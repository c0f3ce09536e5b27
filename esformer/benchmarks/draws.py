"""Which networks a survey trains: what is better at equal cost is asked of networks of one cost that differ otherwise.

Most draws have the parameters and MACs of a reference, within 1.5 % each, so any two of them differ by 3 % at most.
Pairs are the two ends that a hill climb at that cost reaches from one genotype: for a proxy, or for a single kind of
gene. The others are random at that cost, neighbours of the reference, and random within a budget of parameters.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from statistics import mean
from typing import Any

import torch

from esformer.choices import Gene, size_of
from esformer.genotype import ConvBlock, Genotype, TransformerLayer
from esformer.model.cost import cost
from esformer.proxies import get, score
from esformer.proxies.noise import noise_batch
from esformer.space import Place, SearchSpace

TOLERANCE = 0.015
"""How far parameters and MACs may be from the reference's, as a share."""
LEAST = 0.9
"""Of a budget of parameters, what a network drawn within it must use."""
PROXIES = ("entropic_score", "naswot", "log_synflow", "zico", "sed")
"""Those whose two ends are trained."""
SCORES, STEPS = 150, 3000
"""Candidates of a climb that a proxy judges, and that a count judges."""
BATCH = 32
"""Images of noise for proxies that look at a batch."""

Value = Callable[[Genotype], float]


@dataclass(frozen=True)
class Draw:
    """A genotype to train, and how it was found."""

    drawn: str
    genotype: Genotype


def _early_width(genotype: Genotype) -> float:
    """How wide the first half of the stages is beside the second, in logarithms."""
    first, second = ([log(block.out) for stage in half for block in stage] for half in _halves(genotype))
    return mean(first) - mean(second)


def _halves(genotype: Genotype) -> tuple[Any, Any]:
    return genotype.stages[:2], genotype.stages[2:]


COUNTS: dict[str, tuple[tuple[Gene, ...], Value]] = {
    "kernel": (("kernel",), lambda g: mean(block.kernel for block in g.blocks() if isinstance(block, ConvBlock))),
    "convnext": (("ffn",), lambda g: mean(block.ffn == "convnext" for block in g.blocks())),
    "heads": (
        ("heads", "head_dim"),
        lambda g: mean(block.heads for block in g.blocks() if isinstance(block, TransformerLayer)),
    ),
    "early width": (("out",), _early_width),
    "ratio": (("ratio", "out"), lambda g: mean(block.ratio for block in g.blocks())),
}
"""What pairs differ in besides proxies: the genes that may change, and the count of which they are the two ends. Heads
need key dimensions, and ratios widths, to change at equal cost."""

KINDS = (
    *("at cost", "naswot", "entropic_score", "convnext", "at cost", "neighbour", "within budget", "early width"),
    *("log_synflow", "kernel", "ratio", "at cost", "zico", "heads", "neighbour", "sed", "within budget"),
)
ROUND = [(kind, end) for kind in KINDS for end in (("low", "high") if kind in PROXIES or kind in COUNTS else ("",))]
"""What a round of draws holds: kinds, those of a proxy or a count with both their ends."""


class Draws:
    """The draws of a survey, each a pure function of the arguments and its number. The first is the reference.

    Args:
        space: the genotypes there are.
        reference: whose cost the draws have.
        params: the budget of parameters of those that are drawn without regard to MACs.
        img_size: pixels of the images that are trained on, for which MACs are counted and proxies measured.
        num_classes: their classes.
        seed: another seed draws other genotypes.
    """

    def __init__(
        self, space: SearchSpace, reference: Genotype, params: int, img_size: int, num_classes: int, seed: int = 0
    ) -> None:
        self.space, self.reference, self.params_budget = space, reference, params
        self.img_size, self.num_classes, self.seed = img_size, num_classes, seed
        self.target = self._cost(reference)

    def __getitem__(self, index: int) -> Draw:
        if index == 0:
            return Draw("reference", self.reference)
        number, place = divmod(index - 1, len(ROUND))
        name, end = ROUND[place]
        start = place - 1 if end == "high" else place  # the two ends of a pair are climbed to from one genotype
        rng = random.Random(f"{self.seed}/{number}/{start}")
        if end:
            return Draw(f"{end} {name} {number}", self._end(name, end == "high", rng))
        if name == "within budget":
            return Draw(name, self._within_budget(rng))
        return Draw(name, self._neighbour(rng) if name == "neighbour" else self.at_cost(rng))

    def _cost(self, genotype: Genotype) -> tuple[int, int]:
        price = cost(genotype, self.img_size, self.num_classes)
        return price.params, price.macs

    def _distance(self, genotype: Genotype) -> float:
        """From the reference's cost, as a share; the worse of parameters and MACs."""
        return max(abs(log(one / other)) for one, other in zip(self._cost(genotype), self.target, strict=True))

    def _fits(self, genotype: Genotype) -> bool:
        return self._distance(genotype) <= TOLERANCE

    def _within_budget(self, rng: random.Random) -> Genotype:
        while True:
            genotype = self.space.sample(rng)
            if LEAST * self.params_budget <= self._cost(genotype)[0] <= self.params_budget:
                return genotype

    def at_cost(self, rng: random.Random) -> Genotype:
        """A random genotype, changed until its cost is the reference's."""
        while True:
            genotype = self.space.sample(rng)
            for _ in range(STEPS):
                if self._fits(genotype):
                    return genotype
                other = self._change(genotype, self._all_places, rng)
                if self._distance(other) < self._distance(genotype):
                    genotype = other

    def _neighbour(self, rng: random.Random) -> Genotype:
        """The reference with up to three genes changed, at its cost."""
        while True:
            other = self._change(self.reference, self._all_places, rng)
            if other != self.reference and self._fits(other):
                return other

    def _end(self, kind: str, high: bool, rng: random.Random) -> Genotype:
        """Where a hill climb ends that raises (or lowers) a proxy or a count at the reference's cost."""
        genotype = self.at_cost(rng)
        genes, value = COUNTS.get(kind, (None, None))
        steps = SCORES if value is None else STEPS
        value, sign = value or (lambda genotype: self._score(kind, genotype)), 1 if high else -1
        places = [place for place in self._all_places if genes is None or place[1] in genes]
        best = sign * value(genotype)
        for _ in range(steps):
            other = self._change_at_cost(genotype, places, rng)
            if other is not None and (worth := sign * value(other)) >= best:
                genotype, best = other, worth
        return genotype

    def _change_at_cost(self, genotype: Genotype, places: Sequence[Place], rng: random.Random) -> Genotype | None:
        """A change that keeps the cost; None where none is found."""
        for _ in range(100):
            other = self._change(genotype, places, rng)
            if other != genotype and self._fits(other):
                return other
        return None

    def _change(self, genotype: Genotype, places: Sequence[Place], rng: random.Random) -> Genotype:
        """One to three genes drawn anew; a width between those of its neighbours, which it must not pass."""
        values = self.space.values(genotype)
        for place in rng.sample(places, rng.randint(1, 3)):
            options = self.space.options[place]
            if place[1] == "out":
                low = values.get((place[0] - 1, "out"), options[0])
                high = values.get((place[0] + 1, "out"), options[-1])
                options = tuple(width for width in options if low <= width <= high)
            values[place] = rng.choice(options)
        return self.space.build(values)

    @cached_property
    def _all_places(self) -> list[Place]:
        return [place for place in self.space.places() if len(self.space.options[place]) > 1]

    @cached_property
    def _batch(self) -> dict[str, Any]:
        images, labels = map(torch.from_numpy, noise_batch(BATCH, self.img_size, self.seed))
        return {"images": images, "labels": labels}

    def _score(self, name: str, genotype: Genotype) -> float:
        batch: dict[str, Any] = self._batch if get(name).needs == "batch" else {}
        return score(name, genotype, self.seed, self.img_size, draws=1, **batch)


def shipped_reference(size: str) -> Genotype:
    """EfficientFormerV2 of a size, the network that a search must beat at its cost."""
    return Genotype.shipped(size_of(size).reference)
