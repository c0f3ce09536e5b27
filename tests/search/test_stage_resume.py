import json

import pytest
from searches import BUDGET, MINUTES, SHORT, SMALL, SPACE, TINY, genotypes, run, timeless

from esformer.model.cost import Budget
from esformer.search.journal import JournalError, read
from esformer.search.replay import replay
from esformer.search.schedule import Schedule
from esformer.search.stage import SearchCallback, SearchStage


@pytest.mark.parametrize("torn", [False, True])
def test_killed_after_any_line_it_ends_as_if_it_had_not_been(fake, tmp_path, torn):
    path = tmp_path / "journal.jsonl"
    whole = run(path, TINY)
    lines, scored = path.read_bytes().splitlines(keepends=True), set(fake.calls)
    for kept in range(0, len(lines), 3 if torn else 1):
        path.write_bytes(b"".join(lines[:kept]) + (lines[kept][:-7] if torn else b""))
        known = (
            {(*e.scores, g.digest) for e, g in zip(read(path), genotypes(read(path)), strict=True)} if kept else set()
        )
        fake.calls.clear()
        result = run(path, TINY)
        assert result.genotype == whole.genotype and result.scores == whole.scores
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
        assert left == timeless(whole.journal)[: len(left)] and len(left) >= dies_at
        assert timeless(run(path, TINY).journal) == timeless(whole.journal)


def test_counted_in_minutes_it_resumes(fake, tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = run(path, MINUTES)
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        fake.now = 5000.0  # another machine, another clock
        result = run(path, MINUTES)
        assert list(result.journal) == list(whole.journal) and result.genotype == whole.genotype


def test_a_clock_reading_that_rounds_up_to_the_end_of_a_phase_resumes_too(fake, tmp_path):
    path = tmp_path / "journal.jsonl"
    fake.seconds = 59.99997 / 12  # a phase that is 12 evaluations old has 0.00003 seconds left
    one_start = SMALL | {"start_population": 12, "starts": 1, "in_flight": 1}
    schedule = Schedule(unit="minutes", start_length=1, phase_length=1, total=2, **one_start)
    whole = run(path, schedule)
    assert list(whole.journal)[11].elapsed == 60.0
    assert list(run(path, schedule).journal) == list(whole.journal)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(seed=1), "seed was 0, is 1"),
        (dict(budget=Budget(params=3_400_000)), "budget was"),
        (dict(schedule=SHORT), "schedule was"),
        (dict(img_size=32), "img_size was None, is 32"),
        (dict(draws=3), "draws was None, is 3"),
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


def test_a_finished_search_is_rebuilt_from_its_journal_alone(fake, tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = run(path, TINY, seed=3)
    content = path.read_bytes()
    fake.calls.clear()
    again = replay(path)
    assert (again.genotype, again.scores, again.cost) == (whole.genotype, whole.scores, whole.cost)
    assert (again.evaluations, again.seconds) == (whole.evaluations, whole.seconds)
    assert not fake.calls and path.read_bytes() == content

    lines = content.splitlines(keepends=True)
    for unfinished in (lines[:-1], lines[:20], lines[:1], [*lines[:20], lines[20][:9]]):
        path.write_bytes(b"".join(unfinished))
        with pytest.raises(JournalError, match="ends after .* evaluations: the search was not finished"):
            replay(path)
        assert path.read_bytes() == b"".join(unfinished)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((b'"space":"S0"', b'"space":"S9"'), "no search space 'S9'"),
        ((b'"starts":2', b'"starts":0'), "starts is 0"),
        ((b'"starts":2', b'"begins":2'), "unexpected keyword argument 'begins'"),
        ((b'"seed":0,', b""), "line 1|another search"),
    ],
)
def test_a_journal_whose_header_is_damaged_is_refused(fake, tmp_path, change, says):
    path = tmp_path / "journal.jsonl"
    run(path, TINY)
    path.write_bytes(path.read_bytes().replace(*change, 1))
    with pytest.raises(JournalError, match=says):
        replay(path)
