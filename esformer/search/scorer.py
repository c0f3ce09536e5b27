"""How a search scores a genotype, in whichever process."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from esformer.genotype import Genotype
from esformer.proxies import Proxy, get, score
from esformer.search.batch import Batch


@dataclass(frozen=True)
class Task:
    """A genotype and the proxies that are to score it."""

    proxies: tuple[str, ...]
    genotype: Genotype

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

    def __call__(self, task: Task) -> Measured:
        began = time.perf_counter()
        scores = []
        registered = {proxy.name: proxy for proxy in self.registered}
        for name in task.proxies:
            proxy = registered.get(name) or get(name)
            img_size = self.img_size or proxy.search_img_size
            draws = self.draws or proxy.search_draws
            shown: dict[str, Any] = {}
            if proxy.needs == "batch" and self.batch is not None:
                shown = {"images": torch.from_numpy(self.batch.images), "labels": torch.from_numpy(self.batch.labels)}
            scores.append(score(proxy, task.genotype, self.seed, img_size, draws=draws, device=self.device, **shown))
        return Measured(tuple(scores), time.perf_counter() - began)
