"""A search for a whole front: what it finds, that it can be killed, and that other searches stay as they were."""

import csv
from dataclasses import replace
from itertools import pairwise

import pytest
from searches import BUDGET, SHORT, SPACE, TINY, by_phase, genotypes, run, timeless

from esformer.errors import ESFormerError
from esformer.genotype import parse
from esformer.guide import Guide
from esformer.model.cost import Budget, cost
from esformer.model.latency import Latency
from esformer.search import costs, scorer
from esformer.search.family import read_family
from esformer.search.journal import JournalError
from esformer.search.ranking import Front, Scored, front_of
from esformer.search.replay import replay
from esformer.search.schedule import Schedule

FAMILY = replace(SHORT, family="macs")
PLAIN = replace(FAMILY, start_proxy="log_synflow", joint_proxy="log_synflow")


def pairs(evaluations):
    return {(e.macs, *e.scores.values()) for e in evaluations}


def undominated(pairs):
    return sorted(p for p in pairs if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in pairs))


def members(family):
    return [(m.cost, *m.scores.values()) for m in family.members]


@pytest.mark.parametrize(("schedule", "phases"), [(FAMILY, ("size 2",)), (PLAIN, ("multi-start", "joint"))])
def test_the_family_is_the_front_of_what_the_last_guide_ranked(fake, tmp_path, schedule, phases):
    result = run(tmp_path / "journal.jsonl", schedule)
    family = read_family(tmp_path / "journal.jsonl")
    lines = [e for e in result.journal if e.phase.startswith(phases)]
    assert members(family) == undominated(pairs(lines)) and len(family.costs) == len(lines)
    assert family.members[-1].genotype == result.genotype and family.members[-1].scores == result.scores
    assert all(cost(m.genotype).macs == m.cost and BUDGET.allows(cost(m.genotype)) for m in family.members)
    table = list(csv.DictReader(family.csv().splitlines()))
    assert [(float(row["macs"]), float(row["log_synflow"])) for row in table] == members(family)
    assert [parse(row["genotype"]) for row in table] == [m.genotype for m in family.members]


def test_the_best_within_a_cost_and_nothing_below_the_cheapest(fake, tmp_path):
    run(tmp_path / "journal.jsonl", PLAIN)
    family = read_family(tmp_path / "journal.jsonl")
    ends = family.members[0].cost, family.members[-1].cost
    for limit in (*ends, sum(ends) / 2, 1e12):
        best = family.best(limit)
        assert best.cost <= limit
        within = family.worths[family.costs <= limit]
        assert family.ranking(best) == within.max()
    with pytest.raises(ESFormerError, match=rf"within .* macs: the family goes from {ends[0]:,.0f} to {ends[1]:,.0f}"):
        family.best(ends[0] - 1)


def test_a_phase_is_seeded_by_genotypes_spread_over_the_front_of_the_one_before(fake):
    phases = by_phase(run(schedule=FAMILY).journal)
    before = [*phases["multi-start 1"], *phases["multi-start 2"]]
    for previous, name in pairwise([before, "topology 1", "size 1", "topology 2", "size 2"]):
        lines = previous if previous is before else phases[previous]
        front = undominated(pairs(lines))
        cost_of = {g: (e.macs, *e.scores.values()) for g, e in zip(genotypes(lines), lines, strict=True)}
        seeds = [cost_of[g] for g in genotypes(line for line in phases[name] if line.origin == "seed")]
        assert set(seeds) <= set(front) and len(seeds) == min(len(front), FAMILY.seeds)
        assert {front[0], front[-1]} <= set(seeds) and seeds == sorted(seeds, reverse=True)


@pytest.mark.parametrize("seed", range(2))
def test_a_family_is_better_at_low_costs_than_a_search_for_the_best_and_as_good_at_high_ones(monkeypatch, seed):
    """Under a guide that grows with the cost an ordinary search leaves the cheap end alone."""
    monkeypatch.setattr(scorer, "score", lambda proxy, genotype, *_, **__: float(cost(genotype).params))
    long = replace(PLAIN, start_length=90, phase_length=90, total=360)
    family, ordinary = (list(run(schedule=replace(long, family=f), seed=seed).journal) for f in ("macs", None))
    for limit in (1.1e8, 2e8):
        within = [max((e.params for e in journal if e.macs <= limit), default=0) for journal in (family, ordinary)]
        assert within[0] > 1.05 * within[1]
    assert max(e.params for e in family) > 0.99 * max(e.params for e in ordinary)
    assert family[0].macs == min(e.macs for e in family) < 8e7


@pytest.mark.parametrize("schedule", [replace(TINY, family="params")])
def test_killed_after_any_line_it_ends_as_if_it_had_not_been(fake, tmp_path, schedule):
    path = tmp_path / "journal.jsonl"
    whole = run(path, schedule)
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines), 5):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:-7])
        result = run(path, schedule)
        assert timeless(result.journal) == timeless(whole.journal) and result.genotype == whole.genotype
    again = replay(path)
    assert (again.genotype, again.scores) == (whole.genotype, whole.scores)
    path.write_bytes(b"".join(lines[:10]))
    with pytest.raises(JournalError, match="ends before the last phase"):
        read_family(path)


def test_a_family_of_latencies_has_each_measured_once_and_on_record(fake, monkeypatch, tmp_path):
    asked = []

    def measure(genotype, *_, **__):
        asked.append(genotype.digest)
        return Latency(cost(genotype).macs / 1e7, 0.1, 10)

    monkeypatch.setattr(costs, "measure_latency", measure)
    schedule, path = replace(TINY, family="latency_ms"), tmp_path / "journal.jsonl"
    whole = run(path, schedule)
    assert all(e.latency_ms == e.macs / 1e7 for e in whole.journal) and len(set(asked)) == len(asked)
    assert read_family(path).cost == "latency_ms"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:30]))
    assert timeless(run(path, schedule).journal) == timeless(whole.journal)
    with pytest.raises(ESFormerError, match="while 2 processes score on the same CPU"):
        run(schedule=schedule, workers=2)


def test_other_searches_know_of_no_family(fake, tmp_path):
    path = tmp_path / "journal.jsonl"
    run(path, TINY)
    assert "family" not in Schedule().to_dict() and b"family" not in path.read_bytes()
    assert Schedule(**FAMILY.to_dict()) == FAMILY
    with pytest.raises(JournalError, match="without search.family"):
        read_family(path)
    with pytest.raises(JournalError, match="schedule was"):
        run(path, replace(TINY, family="macs"))
    with pytest.raises(ESFormerError, match="family is 'flops'; it must be macs, params, latency_ms or null"):
        Schedule(family="flops")


def test_of_several_proxies_whatever_may_be_on_the_front_is_remembered(draw):
    """The sum divides by the largest of all, which may come last."""
    seen = [
        Scored(draw("S0", seed), {"a": float(a), "b": float(b)}, float(price))
        for seed, (a, b, price) in enumerate([(1, 9, 5), (2, 2, 3), (9, 1, 5), (1, 1, 4), (2, 2, 3), (500, 1, 9)])
    ]
    guide = Guide.parse("a + b", sum="largest")
    front = Front(guide)
    for one in seen:
        front.add(one)
    assert front.ranking == front_of(guide, seen) == [seen[5], seen[0], seen[1]]


def test_a_budget_of_one_genotype_is_a_family_of_one(fake, monkeypatch, tmp_path):
    monkeypatch.setattr("esformer.search.evolution.MUTATION_TRIES", 5)
    monkeypatch.setattr("esformer.search.stage.STALE", 40)
    least = SPACE.cheapest(lambda genotype: cost(genotype).macs)
    run(tmp_path / "journal.jsonl", replace(TINY, family="macs"), budget=Budget(macs=cost(least).macs))
    assert [m.genotype for m in read_family(tmp_path / "journal.jsonl").members] == [least]
