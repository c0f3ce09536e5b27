"""A small search for callbacks to watch: all of it real but the scores, which are costs and take no time."""

import pytest

from esformer import search
from esformer.model.cost import Budget, cost
from esformer.search import scorer
from esformer.search.schedule import Schedule
from esformer.search.stage import SearchCallback
from esformer.space import SearchSpace

PROXIES = dict(size_proxy="entropic_score+log_synflow")
SIZES = dict(starts=2, start_population=8, start_tournament=3, population=10, tournament=4, seeds=3, in_flight=4)
SCHEDULE = Schedule(unit="evaluations", start_length=18, phase_length=25, total=111, **SIZES, **PROXIES)
"""Two populations of 18 evaluations side by side, then 25 of each of topology, size and topology."""
BUDGET = Budget(params=3_500_000, macs=600_000_000)


class Kill(SearchCallback):
    """Ends the search as Ctrl-C does, after some evaluation."""

    def __init__(self, after):
        self.after = after

    def on_evaluation(self, stage, evaluation):
        if evaluation.evaluation == self.after:
            raise KeyboardInterrupt


def score(proxy, genotype, *args, **kwargs):
    price = cost(genotype)
    return float(price.params if proxy.name == "log_synflow" else price.macs)


@pytest.fixture
def run(monkeypatch):
    """Search with some callbacks, from the journal if there is one; `kill` says after which evaluation it dies."""
    monkeypatch.setattr(scorer, "score", score)

    def run(callbacks, kill=None, budget=BUDGET, schedule=SCHEDULE, **kwargs):
        callbacks = [*callbacks, *([] if kill is None else [Kill(kill)])]
        try:
            return search(SearchSpace.for_size("S0"), budget, schedule, callbacks=callbacks, **kwargs)
        except KeyboardInterrupt:
            assert kill is not None

    return run
