"""`run.notify`: the user's own command hears of every end of a stage, and never ends a run."""

import time
from pathlib import Path

import pytest

from esformer.errors import ESFormerError
from pipelines import full, search
from pipelines.runtime.signals import stop

SHORT = ["--size", "S0", "--quick", "search.total=20", "search.start_length=5", "search.phase_length=5"]
SHORT += ["search.img_size=33", "wandb.mode=disabled", "trainer.accelerator=cpu"]
TELL = "run.notify=echo $ESFORMER_STAGE $ESFORMER_STATE $ESFORMER_RUN >> told"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.search.draw_search", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(folder):
    return [line.split() for line in (folder / "told").read_text().splitlines()]


def test_a_search_tells_that_it_is_finished_once(folder):
    search.main([*SHORT, "run.dir=r", TELL])
    assert told(folder) == [["search", "finished", str(folder / "r")]]
    search.main([*SHORT, "run.dir=r", TELL])  # only prints what is there
    search.main([*SHORT, "run.dir=r"])  # another command, or none, is the same run
    assert len(told(folder)) == 1


def test_a_full_run_tells_of_its_search_and_of_how_it_ended(folder, monkeypatch):
    def broken(*args):
        raise ESFormerError("the images are gone")

    monkeypatch.setattr("pipelines.runtime.training.train", broken)
    with pytest.raises(ESFormerError, match="the images are gone"):
        full.main([*SHORT, "run.dir=r", TELL])
    assert [line[:2] for line in told(folder)] == [["search", "finished"], ["full", "failed"]]


STOPS = {"stopped": (SystemExit(75), KeyboardInterrupt()), "failed": (SystemExit(1), OSError())}


@pytest.mark.parametrize(("error", "state"), [(error, state) for state, errors in STOPS.items() for error in errors])
def test_what_stops_a_run_is_told(folder, monkeypatch, error, state):
    def end(*args):
        raise error

    monkeypatch.setattr("pipelines.runtime.searching.run_stage", end)
    with pytest.raises(type(error)):
        search.main([*SHORT, "run.dir=r", TELL])
    assert told(folder)[0][:2] == ["search", state]
    assert not stop.asked


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("exit 3", "ended with exit code 3"),
        (r"printf '\377' >&2; yes | head -c 9000000; exit 4", "ended with exit code 4"),
        ("sleep 30; true", "took more than 0.2 seconds and was ended"),
    ],
)
def test_a_command_that_fails_is_a_warning(folder, monkeypatch, command, says):
    monkeypatch.setattr("pipelines.runtime.notify.PATIENCE", 0.2 if "sleep" in command else 10)
    found = search.main([*SHORT, "run.dir=r", f"run.notify={command}"])
    (line,) = [line for line in (folder / "r/log.txt").read_text().splitlines() if says in line]
    assert found["search_evaluations"] == 20 and "warning: " in line


def alive(pid):
    """Whether a process runs; one that was ended may wait for somebody to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_it_started_ends_with_it_and_a_background_process_does_not_hold_the_run_up(folder, monkeypatch):
    monkeypatch.setattr("pipelines.runtime.notify.PATIENCE", 0.5)
    search.main([*SHORT, "run.dir=a", "run.notify=sleep 60 & echo $! > started; wait"])
    deadline = time.monotonic() + 20
    while alive(int((folder / "started").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    search.main([*SHORT, "run.dir=b", "run.notify=sleep 3 &"])
    assert "warning" not in (folder / "b/log.txt").read_text()
