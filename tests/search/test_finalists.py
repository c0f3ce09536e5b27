"""Who becomes a finalist, and how long each is trained; by hand-made cases."""

import random

import pytest

from esformer.guide import Guide
from esformer.search.finalists import (
    Finalist,
    Rung,
    describe,
    distance,
    epochs_within,
    most_different,
    ranking,
    rungs,
    seconds,
)
from esformer.search.journal import Evaluation, Journal, JournalError
from esformer.space import SearchSpace

SPACE = SearchSpace.for_size("S0")
BASE = SPACE.build({place: options[0] for place, options in SPACE.options.items()})
NASWOT = Guide.parse("naswot")
FREE = [place for place in SPACE.places("topology") if len(SPACE.options[place]) > 1]


def changed(*genes):
    """The base with other values of some topology genes, by number."""
    return SPACE.build(SPACE.values(BASE) | {FREE[i]: SPACE.options[FREE[i]][1] for i in genes})


def finalists(*genotypes):
    return [Finalist(genotype, place, -place) for place, genotype in enumerate(genotypes, 1)]


def write_journal(path, evaluations):
    journal = Journal({"space": "S0"}, path)
    for number, (genotype, scores) in enumerate(evaluations, 1):
        line = Evaluation(number, "size 1", "sample", scores, 1, 1, None, 0.0, 0.0, genotype.to_dict())
        journal.append(line)
    return path


def test_distance_counts_genes():
    assert distance(BASE, BASE) == 0
    assert distance(changed(0, 3), BASE) == distance(BASE, changed(0, 3)) == 2
    assert distance(changed(0, 3), changed(3, 4, 5)) == 3


def test_the_best_is_taken_and_then_the_farthest():
    best = finalists(BASE, changed(0), changed(1, 2), changed(0, 1, 2, 3), changed(4, 5))
    assert [one.place for one in most_different(best, 1)] == [1]
    assert [one.place for one in most_different(best, 2)] == [1, 4]
    # 2 is at 1 of the base; 3 at 2 of it and of 4; 5 at 2 of the base
    assert [one.place for one in most_different(best, 3)] == [1, 3, 4]
    assert [one.place for one in most_different(best, 4)] == [1, 3, 4, 5]


def test_of_equally_far_ones_the_better_is_taken():
    assert [one.place for one in most_different(finalists(BASE, changed(1), changed(2)), 2)] == [1, 2]


@pytest.mark.parametrize("number", [3, 4, 100])
def test_where_there_are_too_few_all_are_taken(number):
    best = finalists(BASE, changed(1), changed(2))
    assert most_different(best, number) == best


def test_a_ranking_holds_each_genotype_once_in_the_order_of_the_guide(tmp_path):
    a, b, c, d = (changed(i) for i in range(4))
    lines = [(a, {"naswot": 1.0}), (b, {"naswot": 3.0}), (a, {"naswot": 1.0}), (c, {"naswot": 2.0})]
    lines += [(d, {"log_synflow": 9.0}), (d, {"naswot": 3.0})]
    path = write_journal(tmp_path / "journal.jsonl", lines)
    assert ranking(path, NASWOT, 10) == [
        Finalist(b, 1, 3.0),  # of equal ones the first
        Finalist(d, 2, 3.0),
        Finalist(c, 3, 2.0),
        Finalist(a, 4, 1.0),
    ]
    assert [one.genotype for one in ranking(path, NASWOT, 2)] == [b, d]
    assert [one.genotype for one in ranking(path, Guide.parse("log_synflow"), 2)] == [d]


def test_a_sum_is_of_shares_of_the_largest_in_the_whole_search(tmp_path):
    a, b, c = (changed(i) for i in range(3))
    lines = [(a, {"x": 1.0, "y": 100.0}), (b, {"x": 2.0, "y": 0.0}), (c, {"x": 4.0, "y": 50.0})]
    path = write_journal(tmp_path / "journal.jsonl", lines)
    guide = Guide.parse("x + y", sum="largest")
    assert ranking(path, guide, 3) == [Finalist(c, 1, 1.5), Finalist(a, 2, 1.25), Finalist(b, 3, 0.5)]


def test_the_best_of_many_are_those_of_a_plain_sort(tmp_path):
    rng = random.Random(0)
    many = [(SPACE.sample(rng), {"naswot": float(rng.randrange(40))}) for _ in range(60)]
    many += [many[rng.randrange(60)] for _ in range(60)]
    path = write_journal(tmp_path / "journal.jsonl", many)
    expected = sorted(dict(many[:60]).items(), key=lambda item: -item[1]["naswot"])[:7]
    assert [one.genotype for one in ranking(path, NASWOT, 7)] == [genotype for genotype, _ in expected]


def test_no_journal_is_refused(tmp_path):
    with pytest.raises(JournalError, match=r"nowhere\.jsonl"):
        ranking(tmp_path / "nowhere.jsonl", NASWOT, 3)


@pytest.mark.parametrize(
    ("networks", "epochs", "expected"),
    [
        (1, 9, []),
        (2, 9, [(2, 9)]),
        (3, 9, [(3, 9)]),
        (4, 9, [(4, 3), (2, 9)]),
        (9, 9, [(9, 3), (3, 9)]),
        (10, 9, [(10, 1), (4, 3), (2, 9)]),
        (27, 1, [(27, 1), (9, 1), (3, 1)]),
        (9, 10, [(9, 3), (3, 10)]),
    ],
)
def test_rungs(networks, epochs, expected):
    assert rungs(networks, epochs) == [Rung(*rung) for rung in expected]


def test_rungs_in_words():
    assert describe(rungs(9, 3)) == "9 networks x 1 epoch, then 3 networks x 3 epochs"


def test_the_time_is_that_of_the_turns_that_devices_take():
    steps = [Rung(9, 3), Rung(3, 9)]
    assert seconds(steps, 1, 10.0, 5.0) == 9 * 35 + 3 * 95
    assert seconds(steps, 4, 10.0, 5.0) == 3 * 35 + 95


@pytest.mark.parametrize("limit", [0.0, 100.0, 599.0, 600.0, 1000.0, 12345.0])
def test_epochs_fill_a_time(limit):
    epochs = epochs_within(limit, 9, 1, 10.0, 5.0, most=100)
    assert epochs == max([e for e in range(1, 101) if seconds(rungs(9, e), 1, 10.0, 5.0) <= limit], default=1)
