"""The record of a search that people look at: complete, the same after a kill, and nearly free."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image

from callbacks import search as module
from callbacks.search import SearchHistory, SearchLog
from esformer.genotype import Genotype
from esformer.model.cost import Budget
from esformer.search.journal import Evaluation, read
from esformer.search.schedule import Schedule
from esformer.search.trajectory import Trajectory

CLOCK = ("seconds", "elapsed", "search/evaluations_per_second")


class Points(Logger):
    """A logger that is not W&B's: it keeps what it gets."""

    name, version = "points", 0

    def __init__(self):
        self.points = []

    def log_metrics(self, metrics, step=None):
        assert step == metrics["search/evaluation"]
        self.points.append(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass


def timeless(row):
    return {name: value for name, value in row.items() if name not in CLOCK}


def table(folder):
    return list(csv.DictReader((folder / "search.csv").open()))


def test_the_table_holds_every_evaluation(run, tmp_path):
    result = run([SearchHistory(tmp_path)], checkpoint=tmp_path / "journal.jsonl")
    rows, journal = table(tmp_path), list(read(tmp_path / "journal.jsonl"))
    assert len(rows) == len(journal) == result.evaluations > 100
    for row, evaluation in zip(rows, journal, strict=True):
        assert list(row.values()) == [
            str(evaluation.evaluation),
            evaluation.phase,
            evaluation.origin,
            str(evaluation.scores.get("entropic_score", "")),
            str(evaluation.scores.get("log_synflow", "")),
            str(evaluation.params),
            str(evaluation.macs),
            str(evaluation.seconds),
            str(evaluation.elapsed),
        ]
    for name in ("search.png", "genotype.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 400


@pytest.mark.parametrize("kill", [3, 37, 70])
def test_a_killed_search_leaves_the_same_record(run, tmp_path, kill, monkeypatch):
    for name in ("draw_search", "draw_architecture"):  # these take their time
        monkeypatch.setattr(module, name, lambda *args: None)
    records = []
    for deaths in ([None], [kill, None]):
        folder, points = tmp_path / str(len(deaths)), Points()
        folder.mkdir()
        for death in deaths:
            history = SearchHistory(folder)
            run(
                [history, SearchLog(every=10)],
                kill=death,
                loggers=[points],
                checkpoint=folder / "journal.jsonl",
            )
        records.append(([timeless(row) for row in table(folder)], [timeless(point) for point in points.points]))
    whole, parts = records
    assert parts == whole


def test_the_points_say_what_the_journal_says(run, tmp_path):
    points = Points()
    run([SearchLog(every=10)], loggers=[points], checkpoint=tmp_path / "journal.jsonl")
    journal = list(read(tmp_path / "journal.jsonl"))
    assert [p["search/evaluation"] for p in points.points] == [
        10,
        20,
        30,
        36,
        40,
        50,
        60,
        61,
        70,
        80,
        86,
        90,
        100,
        110,
        111,
    ]
    for start, stop, phase, living, proxies in (
        (0, 30, 0, 16, ["entropic_score"]),  # two populations of 8 side by side
        (36, 60, 1, 10, ["entropic_score"]),
        (61, 80, 2, 10, ["entropic_score", "log_synflow"]),
    ):
        point = next(p for p in points.points if p["search/evaluation"] == stop)
        part = journal[start:stop]
        assert point["search/phase"] == phase
        for proxy in proxies:
            alive = [evaluation.scores[proxy] for evaluation in part[-living:]]
            assert point[f"search/{proxy}/median"] == median(alive)
        largest = {proxy: max(e.scores[proxy] for e in part) for proxy in proxies}
        best = max(part, key=lambda e: sum(e.scores[proxy] / largest[proxy] for proxy in proxies))
        assert {proxy: point[f"search/{proxy}/best"] for proxy in proxies} == best.scores
        assert (point["search/params"], point["search/macs"]) == (best.params, best.macs)
        assert (point["search/budget_params"], point["search/budget_macs"]) == (3_500_000, 600_000_000)
        speed = 10 / (journal[stop - 1].elapsed - journal[stop - 11].elapsed)
        assert point["search/evaluations_per_second"] == pytest.approx(speed)


@pytest.mark.nightly
def test_wandb_gets_points_pictures_and_the_genotype(run, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))  # where artifacts wait to be sent
    experiment = wandb.init(project="p", dir=tmp_path, mode="offline", settings=wandb.Settings(silent=True))
    result = run([SearchLog(every=10)], loggers=[WandbLogger(experiment=experiment)])
    experiment.finish()
    records = offline_run(tmp_path)

    axis = next(r["metric"] for r in records if r["type"] == "metric" and r["metric"].get("glob_name") == "search/*")
    assert axis["step_metric"] == "search/evaluation"
    rows = [r["history"]["item"] for r in records if r["type"] == "history"]
    points = [row for row in rows if "search/phase" in row]
    assert len(points) == 15
    assert points[-1]["search/evaluation"] == result.evaluations
    assert {"search/entropic_score/best", "search/entropic_score/median", "search/params", "search/budget_macs"} <= set(
        points[-1]
    )
    assert not any("trainer/global_step" in row for row in rows)  # that is the training's axis
    for name in ("search/trajectory", "search/genotype"):
        (picture,) = [row[f"{name}.filenames"][0] for row in rows if f"{name}.filenames" in row]
        assert next(tmp_path.glob(f"wandb/offline-run-*/files/{picture}")).stat().st_size > 10_000
    (artifact,) = [r["artifact"] for r in records if r["type"] == "artifact"]
    assert artifact["type"] == "genotype"
    (file,) = artifact["manifest"]["contents"]
    assert file["path"] == "genotype.yaml"
    assert Genotype.load(file["local_path"]) == result.genotype


def offline_run(folder):
    """The records of a W&B run; a process of its own writes them."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    for _ in range(100):
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        records = [json.loads(line) for line in lines]
        if records and records[-1]["type"] == "exit":
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file} does not end")


def test_an_evaluation_touches_no_file_and_no_logger(run, tmp_path):
    points = Points()
    run([SearchHistory(tmp_path), SearchLog(every=1000)], kill=35, loggers=[points])
    assert not points.points
    assert not list(tmp_path.iterdir())


def test_files_are_written_now_and_then_and_at_the_end(run, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(SearchHistory, "_write", lambda self, stage: written.append(len(self.trajectory)))
    run([SearchHistory(tmp_path)])
    assert written == [111]  # the search ended within 30 seconds
    written.clear()
    run([SearchHistory(tmp_path, every=0)])
    assert written[0] == 1 and len(written) > 2 and written[-1] == 111


def test_a_long_search_stays_small():
    """A hundred thousand evaluations: a few megabytes, and a point of the loggers costs milliseconds at most."""
    schedule = Schedule(unit="evaluations", starts=1, start_length=1000, phase_length=99_000, total=100_000)
    trajectory = Trajectory(schedule.steps())
    for n in range(100_000):
        phase = "multi-start 1" if n < 1000 else "topology 1"
        score = float(n * 7919 % 10_007)
        trajectory.append(Evaluation(n + 1, phase, "mutation", {"entropic_score": score}, n, n, 1.5, 0.0, n / 100, {}))
    columns = [trajectory._phase, trajectory._origin, *trajectory._costs.values(), *trajectory._clock.values()]
    assert sum(column.itemsize * len(column) for column in [*columns, *trajectory._scores.values()]) < 8_000_000
    assert trajectory.costs == ("params", "macs", "latency_ms")
    span = trajectory.last_span()
    assert (span.name, span.start, span.stop, span.living) == ("topology 1", 1000, 100_000, 50)
    scores = trajectory.scores("entropic_score", span.slice)
    best = trajectory.best(span)
    for i in (0, 1, 500, 98_999):
        assert best[i] == scores[: i + 1].argmax()  # the first of equal ones
    assert trajectory.rate(50) == pytest.approx(100)


def test_a_proxy_may_be_called_as_a_cost_is():
    schedule = Schedule(unit="evaluations", starts=1, start_length=1000, total=1000, start_proxy="macs")
    trajectory = Trajectory(schedule.steps())
    trajectory.append(Evaluation(1, "multi-start 1", "sample", {"macs": 0.5}, 10, 20, None, 0.25, 1.5, {}))
    assert trajectory.csv().splitlines() == [
        "evaluation,phase,origin,macs (proxy),params,macs,seconds,elapsed",
        "1,multi-start 1,sample,0.5,10,20,0.25,1.5",
    ]


def test_latency_and_one_evaluation_can_be_drawn(run, tmp_path):
    budget = Budget(params=3_500_000, latency_ms=10_000)
    history = SearchHistory(tmp_path)
    run([history], budget=budget, kill=1, img_size=32, cost_img_size=32)
    history._write(type("Stage", (), {"budget": budget}))
    assert float(table(tmp_path)[0]["latency_ms"]) > 0
