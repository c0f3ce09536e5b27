"""Guides of few ranked terms."""

import numpy as np
import pytest

from esformer.benchmarks.correlation import at_equal_cost
from esformer.benchmarks.guides import fit
from esformer.errors import ESFormerError

N = 120


@pytest.fixture
def known():
    """Accuracies that follow the cost, and beyond it `useful` and, the other way round, `harmful`."""
    generator = np.random.default_rng(0)
    costs = np.exp(generator.normal(size=(N, 2)))
    names = ("useful", "harmful", "idle", "idle_too")
    scores = {name: generator.normal(size=N) for name in names}
    scores["costly"] = costs[:, 0] ** 3
    accuracies = 3 * np.log(costs[:, 0]) + scores["useful"] - 0.5 * scores["harmful"] + 0.1 * generator.normal(size=N)
    return accuracies, scores, costs


def test_what_was_put_in_is_found(known):
    one, two, *more = fit(*known, most=4)
    assert one.proxies == ("useful",) and two.proxies == ("useful", "harmful")
    assert two.terms[0].weight == 1 and -0.75 < two.terms[1].weight < -0.25
    for guide in more:  # what leave-one-out lets through by chance weighs little
        assert all(abs(term.weight) < 0.2 for term in guide.terms[2:])


def test_it_holds_on_networks_that_it_has_not_seen(known):
    accuracies, scores, costs = known
    half, other = slice(None, N // 2), slice(N // 2, None)
    guide = fit(accuracies[half], {name: values[half] for name, values in scores.items()}, costs[half])[-1]
    unseen = {name: values[other] for name, values in scores.items()}
    of_two = at_equal_cost(accuracies[other], guide.worth(unseen), costs[other]).partial
    of_one = at_equal_cost(accuracies[other], unseen["useful"], costs[other]).partial
    assert of_two > 0.8 and of_two > of_one + 0.05


def test_noise_is_not_fitted(known):
    accuracies, scores, costs = known
    idle = {name: scores[name] for name in ("idle", "idle_too")}
    assert len(fit(accuracies, idle, costs)) == 1


def test_too_few_networks_or_nothing_beyond_cost(known):
    accuracies, scores, costs = known
    with pytest.raises(ESFormerError, match="8 networks are too few to fit a guide of 4 terms"):
        fit(accuracies[:8], {name: values[:8] for name, values in scores.items()}, costs[:8])
    with pytest.raises(ESFormerError, match="none of the proxies differs"):
        fit(accuracies, {"costly": scores["costly"], "same": np.ones(N)}, costs)
