import json
import pickle
import resource
from dataclasses import asdict, replace

import pytest

from esformer.model.latency import Latency
from esformer.search.journal import Evaluation, Journal, JournalError, read

HEADER = {"space": "S0", "seed": 0, "budget": {"params": None}}
FIRST = Evaluation(1, "multi-start 1", "sample", {"entropic_score": 1.5}, 10, 20, None, 0.1, 0.1, {"space": "S0"})
LINES = [replace(FIRST, evaluation=i, scores={"entropic_score": i / 3}, elapsed=i / 10) for i in range(1, 6)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "journal.jsonl"
    journal = Journal(HEADER, path)
    for evaluation in LINES:
        journal.append(evaluation)
    return path


def refusal(path, header=HEADER):
    """The one-line message of the refusal; the file stays as it was."""
    before = path.read_bytes()
    with pytest.raises(JournalError) as caught:
        Journal(header, path)
    assert path.read_bytes() == before
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_line_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    journal = Journal(HEADER, tmp_path / "j.jsonl")
    for n, evaluation in enumerate(LINES, start=1):
        journal.append(evaluation)
        assert list(read(tmp_path / "j.jsonl")) == LINES[:n] == list(journal)
        assert len(journal) == n


def test_the_file_is_plain_json_lines(path):
    header, *rest = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert header == {"journal": 2, **HEADER}
    assert rest == [asdict(evaluation) for evaluation in LINES]


def test_without_a_path_it_is_a_temporary_file():
    journal = Journal(HEADER)
    journal.append(FIRST)
    assert list(journal) == [FIRST] and journal.path.exists()
    path = journal.path
    del journal
    assert not path.exists()


def test_reopened_it_goes_on_where_it_was(path):
    journal = Journal(HEADER, path)
    assert list(journal) == LINES
    journal.append(replace(FIRST, evaluation=6))
    assert list(read(path)) == [*LINES, replace(FIRST, evaluation=6)]


def test_cut_at_any_byte_it_keeps_every_whole_line(path):
    whole = path.read_bytes()
    ends = [end for end, byte in enumerate(whole, start=1) if byte == ord("\n")]
    for cut in {*range(0, len(whole), 7), *ends, *(end - 1 for end in ends)}:
        path.write_bytes(whole[:cut])
        kept = max(0, whole[:cut].count(b"\n") - 1)
        journal = Journal(HEADER, path)
        assert list(journal) == LINES[:kept]
        for evaluation in LINES[kept:]:
            journal.append(evaluation)
        assert path.read_bytes() == whole


def test_reading_leaves_a_torn_line_alone(path):
    path.write_bytes(path.read_bytes()[:-10])
    torn = path.read_bytes()
    assert list(read(path)) == LINES[:4]
    assert path.read_bytes() == torn


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (HEADER | {"seed": 1}, "seed was 0, is 1"),
        (HEADER | {"space": "S1"}, "space was S0, is S1"),
        (HEADER | {"budget": {"params": 5}}, "budget was"),
        (HEADER | {"more": 1}, "more was None, is 1"),
        ({"space": "S0"}, "seed was 0, is None"),
    ],
)
def test_a_journal_of_another_search_is_refused(path, header, says):
    message = refusal(path, header)
    assert says in message and "another search" in message


@pytest.mark.parametrize("line", [0, 1, 3, 5])
@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"not json",
        b"[1, 2]",
        b"12",
        b'{"evaluation": 3}',
        b"\xff\xfe\x00\x01",
        b'{"a": 1, "b": 2}',
        b'{"evaluation": 1, "phase": "p", "origin": "seed"',
        json.dumps(asdict(FIRST) | {"scores": {"entropic_score": float("nan")}}).encode(),
        json.dumps(asdict(FIRST) | {"scores": {"entropic_score": "high"}}).encode(),
        json.dumps(asdict(FIRST) | {"scores": {"entropic_score": 10**400}}).encode(),
        json.dumps(asdict(FIRST) | {"elapsed": float("inf")}).encode(),
        json.dumps(asdict(FIRST) | {"surplus": 1}).encode(),
        json.dumps(asdict(FIRST) | {"scores": 1.5}).encode(),
        json.dumps(asdict(FIRST) | {"evaluation": 9}).encode(),
        json.dumps({"latency_of": "abc", "ms": 1}).encode(),
    ],
)
def test_a_corrupt_line_is_refused_and_named(path, line, bad):
    lines = path.read_bytes().splitlines()
    lines[line] = bad
    path.write_bytes(b"\n".join(lines) + b"\n")
    message = refusal(path)
    assert f"line {line + 1} " in message or line == 0


@pytest.mark.parametrize("content", [b"one line", b"two\nlines", bytes(99), b"{}"], ids=range(4))
def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    refusal(path)


def test_an_empty_file_is_a_new_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    path.touch()
    assert list(Journal(HEADER, path)) == []
    assert json.loads(path.read_bytes())["space"] == "S0"


def test_a_journal_of_another_format_is_refused(path):
    path.write_bytes(path.read_bytes().replace(b'"journal":2', b'"journal":1', 1))
    assert "its format is 1, and this version writes 2" in refusal(path)
    with pytest.raises(JournalError, match="has format 1, and this version reads 2"):
        read(path)


def test_latencies_are_kept_beside_the_evaluations(path):
    journal, latency = Journal(HEADER, path), Latency(12.5, 0.1, 9)
    journal.append_latency("abc", latency)
    journal.append(replace(FIRST, evaluation=6, latency_ms=12.5))
    again = Journal(HEADER, path)
    assert again.latencies == {"abc": latency} and len(again) == 6
    assert list(again)[:5] == LINES and list(again)[5].latency_ms == 12.5


def test_another_process_may_read_it(path):
    assert list(pickle.loads(pickle.dumps(Journal(HEADER, path)))) == LINES


def test_a_disk_that_is_full_says_so_and_leaves_whole_lines(tmp_path):
    """As a full disk does, a limit on the size of files lets a part of the line through."""
    path = tmp_path / "j.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(HEADER, path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 250, hard))
    try:
        journal.append(LINES[0])
        with pytest.raises(JournalError, match="cannot be written: File too large; what it holds is kept"):
            journal.append(LINES[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.read_bytes().endswith(b"\n")
    again = Journal(HEADER, path)
    assert list(again) == LINES[:1]
    again.append(LINES[1])
    assert list(read(path)) == LINES[:2]


@pytest.mark.parametrize("tail", [b"{" * (3 << 20), bytes(3 << 20)], ids=["text", "zeros"])
def test_a_torn_tail_of_megabytes_is_cut(path, tail):
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    journal = Journal(HEADER, path)
    journal.append(replace(FIRST, evaluation=6))
    assert list(read(path)) == [*LINES, replace(FIRST, evaluation=6)]
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"params": 2**70},
        {"macs": "many"},
        {"seconds": None},
        {"latency_ms": True},
        {"origin": "nowhere"},
        {"phase": ["a"]},
        {"genotype": None},
        {"scores": {"entropic_score": True}},
        {"evaluation": "2"},
    ],
)
def test_a_line_of_wrong_types_is_named(path, change):
    lines = path.read_bytes().splitlines()
    lines[2] = json.dumps(asdict(LINES[1]) | change).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert "line 3 is not an evaluation" in refusal(path)


@pytest.mark.parametrize("bad", [b"[" * 50_000, b"x" * (2 << 20), bytes(100)], ids=["deep", "long", "zeros"])
def test_a_damaged_middle_is_named(path, bad):
    lines = path.read_bytes().splitlines()
    lines[3] = bad
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert "line 4 is " in refusal(path)


def test_a_phase_that_the_search_has_not_is_named(path):
    assert len(Journal(HEADER, path, {"multi-start 1"})) == 5
    with pytest.raises(JournalError, match="line 2 is of phase 'multi-start 1', which this search has not"):
        Journal(HEADER, path, {"topology 1"})


@pytest.mark.parametrize("what", ["renamed", "replaced", "removed"])
def test_a_folder_that_is_moved_meanwhile_is_found_again(path, what):
    journal = Journal(HEADER, path)
    journal.append(replace(FIRST, evaluation=6))
    moved = path.parent.with_name("moved")
    if what == "removed":
        path.unlink()
    else:
        path.parent.rename(moved)
    if what == "replaced":
        path.parent.mkdir()
        path.write_text("somebody's")
    says = "removed while the search ran" if what == "removed" else f"it is {moved / path.name} now"
    with pytest.raises(JournalError, match=says):
        journal.append(replace(FIRST, evaluation=7))
    if what != "removed":
        assert len(list(read(moved / path.name))) == 6
    assert path.exists() == (what == "replaced") and (what != "replaced" or path.read_text() == "somebody's")
