"""A worker process of a search: takes genotypes and answers with their scores. It knows nothing else of the search."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from esformer.children import end_with_parent
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.proxies import Proxy, get, score
from esformer.search.batch import Batch


@dataclass(frozen=True)
class Task:
    """A genotype and the proxies that are to score it."""

    proxies: tuple[str, ...]
    genotype: Genotype


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


def serve(connection: Connection, scorer: Callable[[Task], Measured]) -> None:
    """Answer tasks until there are no more."""
    while (order := connection.recv()) is not None:
        number, task = order
        try:
            outcome: Measured | ESFormerError = scorer(task)
        except ESFormerError as error:
            outcome = error
        connection.send((number, outcome))


if __name__ == "__main__":
    end_with_parent()
    torch.set_num_threads(1)
    with Connection(int(sys.argv[1])) as connection, suppress(EOFError, OSError):  # whoever sent the tasks is gone
        serve(connection, connection.recv())
