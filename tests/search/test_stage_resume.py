import json

import pytest
from searches import BUDGET, MINUTES, SHORT, SMALL, SPACE, TINY, by_phase, genotypes, run, timeless

from esformer.genotype import Genotype
from esformer.model.cost import Budget
from esformer.search import stage
from esformer.search.journal import JournalError, read
from esformer.search.schedule import Schedule
from esformer.search.stage import SearchCallback, SearchStage


@pytest.mark.parametrize("torn", [False, True])
def test_killed_after_any_line_it_ends_as_if_it_had_not_been(fake, tmp_path, torn):
    path = tmp_path / "journal.jsonl"
    whole = run(path, TINY)
    lines, scored = path.read_bytes().splitlines(keepends=True), set(fake.calls)
    for kept in range(0, len(lines), 3 if torn else 1):
        path.write_bytes(b"".join(lines[:kept]) + (lines[kept][:-7] if torn else b""))
        known = {(e.proxy, g.digest) for e, g in zip(read(path), genotypes(read(path)), strict=True)}
        fake.calls.clear()
        result = run(path, TINY)
        assert result.genotype == whole.genotype and result.score == whole.score
        assert timeless(result.journal) == timeless(read(path)) == timeless(whole.journal)
        assert set(fake.calls) == scored - known and len(fake.calls) == len(scored - known)


def test_interrupted_while_scoring_it_leaves_a_beginning_and_goes_on(fake, tmp_path):
    whole = run(schedule=TINY)
    for dies_at in (0, 1, 10, 25):
        path = tmp_path / f"{dies_at}.jsonl"
        fake.calls.clear()
        fake.dies_at = dies_at
        with pytest.raises(KeyboardInterrupt):
            run(path, TINY)
        fake.dies_at = None
        left = timeless(read(path))
        assert left == timeless(whole.journal)[: len(left)] and len(left) >= dies_at - stage.BATCH
        assert timeless(run(path, TINY).journal) == timeless(whole.journal)


def test_counted_in_minutes_it_resumes(fake, tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = run(path, MINUTES)
    lines, elapsed = path.read_bytes().splitlines(keepends=True), [e.elapsed for e in whole.journal]
    for kept in range(len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        fake.now = 5000.0  # another machine, another clock
        result = run(path, MINUTES)
        assert list(result.journal)[: max(0, kept - 1)] == list(whole.journal)[: max(0, kept - 1)]
        if kept < 2 or kept == len(lines) or elapsed[kept - 2] < elapsed[kept - 1]:  # between two batches
            assert list(result.journal) == list(whole.journal) and result.genotype == whole.genotype
        assert list(by_phase(result.journal)) == list(by_phase(whole.journal))
        assert 240 <= result.seconds < 240 + 4 * 7 * stage.BATCH


def test_a_clock_reading_that_rounds_up_to_the_end_of_a_phase_resumes_too(fake, tmp_path):
    path = tmp_path / "journal.jsonl"
    fake.seconds = 59.99997 / 12  # a phase that is 12 evaluations old has 0.00003 seconds left
    one_start = SMALL | {"start_population": 12, "starts": 1}
    schedule = Schedule(unit="minutes", start_length=1, phase_length=1, total=2, **one_start)
    whole = run(path, schedule)
    assert whole.journal.recorded[11].elapsed == 60.0
    assert list(run(path, schedule).journal) == list(whole.journal)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(seed=1), "seed was 0, is 1"),
        (dict(budget=Budget(params=3_400_000)), "budget was"),
        (dict(schedule=SHORT), "schedule was"),
        (dict(img_size=32), "img_size was 224, is 32"),
        (dict(num_classes=10), "num_classes was 1000, is 10"),
    ],
)
def test_a_journal_of_another_search_is_refused_and_kept(fake, tmp_path, change, says):
    path = tmp_path / "journal.jsonl"
    run(path, TINY)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=f"another search: .*{says}.*choose another folder"):
        run(path, **{"schedule": TINY} | change)
    assert path.read_bytes() == before


def test_a_journal_that_was_tampered_with_is_refused_and_kept(fake, tmp_path):
    path = tmp_path / "journal.jsonl"
    run(path, TINY)
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in (
        [*lines[:5], b"{}\n", *lines[6:]],
        [*lines[:5], *lines[6:]],
        [*lines[:5], lines[6], lines[5], *lines[7:]],
    ):
        path.write_bytes(b"".join(broken))
        with pytest.raises(JournalError):
            run(path, TINY)
        assert path.read_bytes() == b"".join(broken)


def test_state_dict_goes_on_anywhere(fake):
    states = []

    class Keep(SearchCallback):
        def on_evaluation(self, stage, evaluation):
            states.append(json.dumps(stage.state_dict()))

    whole = run(schedule=TINY, callbacks=[Keep()])
    for state in states[::7]:
        known = len(json.loads(state)["evaluations"])
        other = SearchStage(SPACE, BUDGET, TINY)
        other.load_state_dict(json.loads(state))
        assert len(other.state_dict()["evaluations"]) == known
        fake.calls.clear()
        result = other.run()
        assert timeless(result.journal) == timeless(whole.journal) and len(fake.calls) <= 36 - known
    assert SearchStage(SPACE, BUDGET, TINY).state_dict()["evaluations"] == []


def test_a_state_of_another_search_is_refused(fake, tmp_path):
    one = SearchStage(SPACE, BUDGET, TINY)
    one.run()
    with pytest.raises(JournalError, match="another search"):
        SearchStage(SPACE, BUDGET, TINY, seed=1).load_state_dict(one.state_dict())
    with pytest.raises(JournalError, match="checkpoint"):
        SearchStage(SPACE, BUDGET, TINY, checkpoint=tmp_path / "j.jsonl").load_state_dict(one.state_dict())


ON_TWO = """
import json, sys
from pathlib import Path
from lightning.fabric import Fabric
from esformer import Budget, Schedule, SearchSpace, search

folder, schedule = Path(sys.argv[1]), Schedule(**json.loads(sys.argv[2]))
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()

def run(name):
    space, budget = SearchSpace.for_size("S0"), Budget.for_size("S0")
    return search(space, budget, schedule, img_size=32, fabric=fabric, checkpoint=folder / name)

result = run("two.jsonl")
result.genotype.save(folder / f"rank {fabric.global_rank}.yaml")
if fabric.is_global_zero:
    lines = (folder / "two.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "resumed.jsonl").write_bytes(b"".join(lines[:9]) + lines[9][:50])
fabric.barrier()
assert run("resumed.jsonl").genotype == result.genotype
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, fresh_process):
    few = dict(start_population=4, start_tournament=2, population=4, tournament=2, seeds=2, starts=1)
    schedule = Schedule(unit="evaluations", start_length=5, phase_length=3, total=11, **few)
    script = tmp_path / "search.py"
    script.write_text(ON_TWO)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    fresh_process(*launcher, script, tmp_path, json.dumps(schedule.to_dict()))
    alone = run(schedule=schedule, img_size=32)
    for name in ("two", "resumed"):
        assert timeless(read(tmp_path / f"{name}.jsonl")) == timeless(alone.journal)
    assert {Genotype.load(tmp_path / f"rank {rank}.yaml") for rank in (0, 1)} == {alone.genotype}
