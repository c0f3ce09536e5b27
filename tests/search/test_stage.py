from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from searches import BUDGET, MINUTES, SHORT, SMALL, SPACE, TINY, by_phase, genotypes, run, timeless

from esformer.choices import GROUPS
from esformer.errors import ESFormerError
from esformer.guide import Guide
from esformer.model.cost import Budget, cost
from esformer.model.latency import Latency
from esformer.proxies import get
from esformer.proxies.cached_weights import cached_weights
from esformer.search import costs, evolution, scorer, stage
from esformer.search.journal import JournalError, read
from esformer.search.replay import replay
from esformer.search.schedule import Schedule
from esformer.search.stage import SearchCallback, SearchStage


def value(evaluation):
    (score,) = evaluation.scores.values()
    return score


def best(evaluations, n):
    """The best n different genotypes, the best first."""
    scores = {g: value(e) for g, e in zip(genotypes(evaluations), evaluations, strict=True)}
    return sorted(scores, key=scores.get, reverse=True)[:n]


def test_counted_in_evaluations_it_is_exact_and_reproducible(fake, tmp_path):
    results = [run(tmp_path / "one.jsonl"), run()]
    assert [result.evaluations for result in results] == [80, 80]
    assert results[0].genotype == results[1].genotype
    assert timeless(results[0].journal) == timeless(results[1].journal) == timeless(read(tmp_path / "one.jsonl"))
    assert timeless(run(seed=1).journal) != timeless(results[0].journal)
    lengths = {phase: len(lines) for phase, lines in by_phase(results[0].journal).items()}
    starts = {"multi-start 1": 15, "multi-start 2": 15}
    assert lengths == starts | {"topology 1": 14, "size 1": 14, "topology 2": 14, "size 2": 8}
    assert [e.evaluation for e in results[0].journal] == list(range(1, 81))


def test_the_result_is_the_best_of_the_last_phase(fake):
    result = run()
    last = by_phase(result.journal)["size 2"]
    assert result.scores == {"log_synflow": max(value(e) for e in last)}
    assert result.genotype == best(last, 1)[0] and result.cost == cost(result.genotype)
    assert result.seconds == pytest.approx(7.0 * len(fake.calls))


def test_each_line_says_what_it_is_about(fake):
    proxies = {"multi-start": "entropic_score", "topology": "entropic_score", "size": "log_synflow"}
    for e, genotype in zip(result := run().journal, genotypes(result), strict=True):
        assert genotype in SPACE and BUDGET.allows(cost(genotype))
        assert (e.params, e.macs) == (cost(genotype).params, cost(genotype).macs)
        name = proxies[e.phase.split()[0]]
        assert e.scores == {name: fake.value(name, genotype)} and e.latency_ms is None


def test_nothing_is_scored_twice(fake):
    run()
    assert len(set(fake.calls)) == len(fake.calls) < 80  # the seeds of a second topology phase may be known


def test_a_phase_is_seeded_by_the_best_of_the_one_before(fake):
    phases = by_phase(run().journal)
    starts = [best(phases[name], 3) for name in ("multi-start 1", "multi-start 2")]
    for name, lines in phases.items():
        origins = [line.origin for line in lines]
        if name.startswith("multi-start"):
            assert origins[:8] == ["sample"] * 8 and set(origins[8:]) <= {"mutation", "crossover"}
    score = {g: value(e) for lines in (phases["multi-start 1"], phases["multi-start 2"])
             for g, e in zip(genotypes(lines), lines, strict=True)}  # fmt: skip
    seeds = {"topology 1": sorted(starts[0] + starts[1], key=score.get, reverse=True)}
    seeds |= {now: best(phases[then], 3) for then, now in pairwise(["topology 1", "size 1", "topology 2", "size 2"])}
    for name, expected in seeds.items():
        seeded = [line for line in phases[name] if line.origin == "seed"]
        assert genotypes(seeded) == expected and phases[name][: len(seeded)] == seeded


@pytest.mark.parametrize("seed", range(3))
def test_in_a_phase_only_its_genes_change(fake, seed):
    phases = by_phase(run(seed=seed).journal)
    for name, lines in phases.items():
        fixed = {"topology": "size", "size": "topology"}.get(name.split()[0])
        if fixed is None:
            continue

        def unchanged(genotype, fixed=fixed):
            return tuple(value for (_, gene), value in SPACE.values(genotype).items() if gene in GROUPS[fixed])

        seeds = {unchanged(g) for g in genotypes(line for line in lines if line.origin == "seed")}
        assert seeds and {unchanged(g) for g in genotypes(lines)} <= seeds
        assert len({g.digest for g in genotypes(lines)}) > len(seeds)


def test_it_finds_what_the_proxy_prizes(fake, monkeypatch):
    def kernels_and_widths(proxy, genotype, *_, **__):
        if proxy.name == "entropic_score":
            return float(sum(getattr(block, "kernel", 0) for block in genotype.blocks()))
        return float(sum(block.head_dim for block in genotype.blocks() if hasattr(block, "head_dim")))

    monkeypatch.setattr(scorer, "score", kernels_and_widths)
    result = run(schedule=Schedule(unit="evaluations", start_length=60, phase_length=100, total=320, **SMALL))
    first = genotypes(by_phase(result.journal)["multi-start 1"][:8])
    for proxy in map(get, ("entropic_score", "log_synflow")):
        assert kernels_and_widths(proxy, result.genotype) > max(kernels_and_widths(proxy, g) for g in first)


def test_counted_in_minutes_each_step_ends_by_the_clock(fake):
    result = run(schedule=MINUTES)
    phases = by_phase(result.journal)
    assert list(phases) == ["multi-start 1", "multi-start 2", "topology 1", "size 1"]
    ends = {"multi-start 2": 2, "topology 1": 3, "size 1": 4}  # what takes too long does not add up
    for name, minute in ends.items():
        assert 60 * minute <= phases[name][-1].elapsed <= 60 * minute + 7 * (MINUTES.in_flight + 1)
    assert abs(len(phases["multi-start 1"]) - len(phases["multi-start 2"])) <= 1  # side by side
    assert result.seconds == pytest.approx(7.0 * len(fake.calls))
    assert run(schedule=MINUTES).genotype == result.genotype


def test_the_populations_of_the_multi_start_take_turns(fake):
    names = [e.phase for e in run().journal]
    assert names[:16] == ["multi-start 1", "multi-start 2"] * 8  # then each waits until its first generation is scored
    assert sorted(names[:30]) == ["multi-start 1"] * 15 + ["multi-start 2"] * 15


def test_genotypes_are_bred_while_others_are_scored(fake):
    """An evaluation depends on those that came at least `in_flight` before it, and on no later one."""
    journals = [list(run(schedule=replace(SHORT, in_flight=n)).journal) for n in (1, 4, 8)]
    bred = [[g.digest for g in genotypes(journal)] for journal in journals]
    # with more in flight a generation is bred from fewer scores, so that it is another one
    assert bred[0][:16] == bred[1][:16] == bred[2][:16] and bred[0] != bred[1] != bred[2]
    assert all(len(set(journal)) > 40 for journal in bred)


def test_two_proxies_can_rank_together(fake):
    both = "entropic_score+log_synflow"
    schedule = replace(SHORT, start_proxy=both, joint_proxy=both)
    result = run(schedule=schedule)
    assert {tuple(e.scores) for e in result.journal} == {("entropic_score", "log_synflow")}
    assert list(by_phase(result.journal))[2:] == ["joint 1", "joint 2", "joint 3", "joint 4"]
    last = by_phase(result.journal)["joint 4"]
    largest = {name: max(e.scores[name] for e in last) for name in result.scores}
    worth = {g: sum(e.scores[n] / largest[n] for n in largest) for g, e in zip(genotypes(last), last, strict=True)}
    assert result.genotype == max(worth, key=worth.get)
    assert len(set(fake.calls)) == len(fake.calls)


def test_a_guide_of_ranks_can_be_killed_and_replayed(fake, tmp_path):
    guide = "log(entropic_score) - 0.5*log_synflow"
    schedule = replace(SHORT, start_proxy=guide, joint_proxy=guide, sum="ranks")
    whole, path = run(schedule=schedule), tmp_path / "journal.jsonl"
    assert {tuple(e.scores) for e in whole.journal} == {("entropic_score", "log_synflow")}
    path.write_bytes(b"".join(whole.journal.path.read_bytes().splitlines(keepends=True)[:60]))
    assert run(path, schedule).genotype == replay(path).genotype == whole.genotype
    last = by_phase(whole.journal)["joint 4"]
    columns = {name: [e.scores[name] for e in last] for name in whole.scores}
    worth = Guide.parse(guide).worth(columns)
    assert genotypes(last).index(whole.genotype) in np.argsort(-worth)[:5]  # a population is not the phase
    with pytest.raises(JournalError, match="schedule was"):
        run(path, replace(schedule, sum="largest", start_proxy="log_synflow", joint_proxy="log_synflow"))


def test_what_is_better_when_lower_wants_a_minus(fake, monkeypatch):
    monkeypatch.setattr(get("meco"), "higher_is_better", False, raising=False)
    with pytest.raises(ESFormerError, match="meco is better when lower, and a search maximises: write -meco"):
        run(schedule=replace(SHORT, start_proxy="meco"))
    run(schedule=replace(SHORT, start_proxy="-meco"))


@pytest.mark.parametrize("limit", ["params", "macs"])
def test_a_budget_that_nothing_fits_is_refused_with_the_cheapests_cost(limit):
    lowest = cost(SPACE.cheapest(lambda genotype: getattr(cost(genotype), limit)))
    least = getattr(lowest, limit)
    with pytest.raises(
        ValueError, match=f"no genotype of space S0 fits .*{lowest.params:,} params and {lowest.macs:,} macs"
    ):
        SearchStage(SPACE, Budget(**{limit: least - 1}), SHORT)
    assert getattr(cost(SearchStage(SPACE, Budget(**{limit: least}), SHORT).costs.cheapest), limit) == least


def test_a_budget_that_one_or_few_fit_comes_to_an_end(fake, monkeypatch):
    monkeypatch.setattr(evolution, "MUTATION_TRIES", 10)
    monkeypatch.setattr(stage, "STALE", 150)
    least = cost(SPACE.cheapest(lambda genotype: cost(genotype).params)).params
    long = Schedule(unit="evaluations", start_length=300, phase_length=300, total=900, **SMALL | {"starts": 1})
    for slack in (0, 300):
        budget = Budget(params=least + slack)
        result = run(schedule=long, budget=budget)
        found = set(genotypes(result.journal))
        assert result.evaluations < 900 and (len(found) == 1) == (slack == 0)
        assert all(budget.allows(cost(genotype)) for genotype in found)


def test_proxies_that_cannot_rank_are_refused_before_anything_is_scored(fake):
    for name in ("start_proxy", "topology_proxy", "size_proxy"):
        with pytest.raises(ESFormerError, match="no proxy 'magic'"):
            run(schedule=Schedule(unit="evaluations", **{name: "magic"}))
    assert not fake.calls


class Diary(SearchCallback):
    def __init__(self):
        self.events = []

    def on_search_start(self, stage):
        self.events.append(("start", len(stage.journal)))

    def on_phase_start(self, stage, phase):
        self.events.append(("phase", phase.name))

    def on_evaluation(self, stage, evaluation):
        assert list(stage.journal)[-1] == evaluation
        self.events.append(("evaluation", evaluation.evaluation))

    def on_phase_end(self, stage, phase, best):
        assert max(best.scores.values()) == max(value(e) for e in stage.journal if e.phase == phase.name)
        self.events.append(("end of", phase.name))

    def on_search_end(self, stage, result):
        self.events.append(("end", result.evaluations))


def test_callbacks_are_called_in_order(fake, tmp_path):
    whole, rest, path = Diary(), Diary(), tmp_path / "journal.jsonl"
    run(path, TINY, callbacks=[whole])
    expected = [("start", 0)]
    for step in TINY.steps():
        names = [phase.name for phase in step]
        lines = [line for line in read(path) if line.phase in names]
        expected += [("phase", name) for name in names]
        expected += [("evaluation", line.evaluation) for line in lines] + [("end of", name) for name in names]
    expected.append(("end", 36))
    assert whole.events == expected

    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:13]))  # 12 evaluations
    run(path, TINY, callbacks=[rest])
    at = expected.index(("evaluation", 13))
    assert rest.events == [("start", 12), ("phase", "multi-start 1"), ("phase", "multi-start 2"), *expected[at:]]


def test_a_latency_budget_is_kept_and_measured_once(fake, monkeypatch, tmp_path):
    """The device is a fake here; that a real one is measured is tested with `measure_latency`."""
    asked = []

    def measure(genotype, *_, **__):
        asked.append(genotype.digest)
        return Latency(cost(genotype).macs / 1e7, 0.1, 10)

    monkeypatch.setattr(costs, "measure_latency", measure)
    budget = Budget(params=3_500_000, latency_ms=28.0)
    path = tmp_path / "journal.jsonl"
    whole = run(path, TINY, budget=budget)
    assert len(set(asked)) == len(asked) > 36
    assert all(e.latency_ms == e.macs / 1e7 <= 28 and e.params <= 3.5e6 for e in whole.journal)

    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines), 11):
        path.write_bytes(b"".join(lines[:kept]))
        asked.clear()
        assert timeless(run(path, TINY, budget=budget).journal) == timeless(whole.journal)
        assert len(asked) <= 1 + len(lines) - kept  # the cheapest, and what was not on record


def test_a_latency_that_nothing_keeps_is_refused_with_the_cheapests(monkeypatch):
    monkeypatch.setattr(costs, "measure_latency", lambda *_, **__: Latency(5.0, 0.2, 30))
    with pytest.raises(
        ESFormerError, match="a budget of 4 ms latency: the cheapest has .* and 5.0 ± 0.2 ms of latency"
    ):
        SearchStage(SPACE, Budget(latency_ms=4), SHORT)
    with pytest.raises(ESFormerError, match="while 2 processes score on the same CPU"):
        SearchStage(SPACE, Budget(latency_ms=9), SHORT, workers=2)
    with pytest.raises(ESFormerError, match="workers is 0"):
        SearchStage(SPACE, BUDGET, SHORT, workers=0)


def test_what_scoring_keeps_is_let_go_of_in_the_end(monkeypatch):
    seen = []
    forget = stage.forget_cached_weights
    monkeypatch.setattr(
        stage, "forget_cached_weights", lambda: (seen.append(cached_weights.cache_info().currsize), forget())
    )
    run(schedule=TINY, img_size=33, draws=1)
    assert seen[0] > 0 and cached_weights.cache_info().currsize == 0
    monkeypatch.setattr(SearchStage, "_search", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run()
    assert len(seen) == 2
