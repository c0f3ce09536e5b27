"""A score that takes no time and a clock that only scoring moves, so that a search is exact to the second."""

from hashlib import sha256
from types import SimpleNamespace

import pytest

from esformer.search import scorer, stage


class Fake:
    """Stands in for `score` and for the clock of the search; it does not replace what evolves or keeps record."""

    def __init__(self):
        self.calls = []
        self.now, self.seconds = 100.0, 7.0
        self.dies_at = None

    def score(self, proxy, genotype, seed=0, img_size=224, **_):
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append((proxy.name, genotype.digest))
        self.now += self.seconds
        return self.value(proxy.name, genotype, seed, img_size)

    def value(self, name, genotype, seed=0, img_size=None):
        img_size = img_size or {"entropic_score": 161, "log_synflow": 33}[name]
        return int(sha256(f"{name}/{seed}/{img_size}/{genotype.digest}".encode()).hexdigest()[:12], 16) / 2**48


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(scorer, "score", fake.score)
    clock = SimpleNamespace(perf_counter=lambda: fake.now)
    monkeypatch.setattr(stage, "time", clock)
    monkeypatch.setattr(scorer, "time", clock)
    return fake
