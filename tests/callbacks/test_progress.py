"""What a person is told while a search runs."""

import logging
import re

from callbacks import progress
from callbacks.progress import SearchProgress
from esformer import throttle
from esformer.search.callback import SearchCallback


def test_lines_say_where_the_search_is(run, caplog):
    with caplog.at_level(logging.INFO, "esformer"):
        run([SearchProgress(bar=False, every=0)])
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("search: 111 evaluations in space S0, budget")
    said = [
        re.match(r"search: (\d+) of 111 evaluations, (.+), best ([^/]+), ([\d.]+) evaluations/s$", line)
        for line in lines
    ]
    said = [match.groups() for match in said if match]
    assert [int(n) for n, *_ in said] == list(range(2, 112))  # the first has no speed yet
    assert [phase for _, phase, *_ in said] == ["multi-start"] * 35 + [
        *["topology 1"] * 25,
        *["size 1"] * 25,
        *["topology 2"] * 25,
    ]
    assert all(
        re.fullmatch(r"entropic_score \S+, log_synflow \S+", best) for _, phase, best, _ in said if phase == "size 1"
    )
    assert sum("multi-start 2 ends at entropic_score " in line for line in lines) == 1
    assert lines[-1].startswith("search: 111 evaluations in ")


def test_after_a_kill_it_knows_the_best_of_the_phase(run, caplog, tmp_path):
    bests = []
    for folder, kill in (("a", None), ("b", 50), ("b", None)):
        with caplog.at_level(logging.INFO, "esformer"):
            run([SearchProgress(bar=False, every=0)], kill=kill, checkpoint=tmp_path / folder / "journal.jsonl")
        lines = [record.getMessage() for record in caplog.records]
        bests.append([line.rpartition(",")[0] for line in lines if re.match(r"search: (5[2-9]|60) of", line)])
        caplog.clear()
    assert bests[2] == bests[0] != bests[1]


class Clock(SearchCallback):
    now = 0.0

    def on_evaluation(self, stage, evaluation):
        self.now += 1 / 16  # what an evaluation takes

    def monotonic(self):
        return self.now


def test_a_bar_moves_ten_times_a_second_at_most(run, monkeypatch):
    clock = Clock()
    for module in (progress, throttle):
        monkeypatch.setattr(module, "time", clock)
    updates = []
    bar = SearchProgress(bar=True)
    monkeypatch.setattr(bar._bar, "update", lambda task, **how: updates.append(how))
    monkeypatch.setattr(bar._bar, "start", lambda: None)
    run([clock, bar])
    assert [update["completed"] for update in updates] == list(range(1, 112, 2))
    assert all(update["description"].endswith(", 16 evaluations/s") for update in updates[1:])
