"""How a search scores a genotype, in whichever process."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from esformer.proxies import Proxy, get, score
from esformer.search.batch import Batch
from esformer.search.space import Architecture, ScoredSpace


@dataclass(frozen=True)
class Task:
    """A genotype and the proxies that are to score it."""

    proxies: tuple[str, ...]
    genotype: Architecture

    def __str__(self) -> str:
        return f"genotype {self.genotype.digest}"


@dataclass(frozen=True)
class Measured:
    """The scores of a task, in the order of its proxies, and the seconds that they took."""

    scores: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Scorer:
    """How a search scores: all that a worker needs to know of it."""

    seed: int
    img_size: int | None
    draws: int | None
    device: str
    batch: Batch | None = None
    """For the proxies that need images."""
    registered: tuple[Proxy, ...] = ()
    """Proxies from elsewhere: a worker, which knows this library's alone, imports their modules as it receives them."""
    space: ScoredSpace | None = None
    """What scores architectures that are no genotypes of ESFormers."""

    def __call__(self, task: Task) -> Measured:
        began = time.perf_counter()
        scores = tuple(self._score(name, task.genotype) for name in task.proxies)
        return Measured(scores, time.perf_counter() - began)

    def _score(self, name: str, genotype: Any) -> float:
        if self.space is not None and name in self.space.scores:
            return self.space.scores[name](genotype)
        proxy = next((proxy for proxy in self.registered if proxy.name == name), None) or get(name)
        shown: dict[str, Any] = {}
        if proxy.needs == "batch" and self.batch is not None:
            shown = {"images": torch.from_numpy(self.batch.images), "labels": torch.from_numpy(self.batch.labels)}
        if self.space is not None:
            return self.space.score(proxy, genotype, self.seed, draws=self.draws, **shown)
        img_size = self.img_size or proxy.search_img_size
        draws = self.draws or proxy.search_draws
        return score(proxy, genotype, self.seed, img_size, draws=draws, device=self.device, **shown)
