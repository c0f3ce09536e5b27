"""A score that takes no time and a clock that only scoring moves, so that a search is exact to the second."""

from hashlib import sha256
from types import SimpleNamespace

import pytest

from esformer.search import stage


class Fake:
    """Stands in for `score` and for the clock of the search stage; it does not replace what evolves or keeps record."""

    def __init__(self):
        self.calls = []
        self.now, self.seconds = 100.0, 7.0
        self.dies_at = None

    def score(self, proxy, genotype, seed=0, img_size=224):
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append((proxy, genotype.digest))
        self.now += self.seconds
        return int(sha256(f"{proxy}/{seed}/{img_size}/{genotype.digest}".encode()).hexdigest()[:12], 16) / 2**48


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(stage, "score", fake.score)
    monkeypatch.setattr(stage, "time", SimpleNamespace(perf_counter=lambda: fake.now))
    return fake
