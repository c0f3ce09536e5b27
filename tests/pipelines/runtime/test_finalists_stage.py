"""Finalists: who wins, what is left in the folder, whatever is killed; most of it with trainings that take no time."""

import csv
import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.loggers import WandbLogger

from configs.compose import compose
from configs.schema import ConfigError
from esformer.errors import STOPPED, ESFormerError
from esformer.genotype import Genotype, notation
from esformer.search.journal import Evaluation, Journal
from esformer.space import SearchSpace
from pipelines import ablate, search
from pipelines.runtime import finalists, trainings
from pipelines.runtime.plan import Plan
from pipelines.runtime.processes import Processes
from pipelines.runtime.run_folder import RunFolder

FAST = [
    "search=paper",
    "data=digits",
    "data.limit=64",
    "data.workers=0",
    "recipe=quick",
    "recipe.batch_size=16",
    "trainer.threads=1",
]
FAST += ["trainer.accelerator=cpu", "wandb.mode=disabled"]
FOUR = [*FAST, "search.finalists=4"]

PYTHON = """#!{python} -SE
import json, os, sys
from pathlib import Path

settings = dict(word.split("=", 1) for word in sys.argv if "=" in word)
folder = Path(settings["run.dir"])
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
with Path("{said}").open("a") as said:
    said.write(json.dumps(dict(folder=str(folder), argv=sys.argv, env=dict(os.environ), parent=os.getppid())) + "\\n")
if "pipelines.runtime.pace" in sys.argv:
    (folder / "pace.json").write_text('{{"epoch_seconds": 6.0}}')
    sys.exit()
if os.environ.get("EXIT"):
    print("no luck")
    sys.exit(int(os.environ["EXIT"]))
place, epochs = int(folder.name[:3]), int(settings["recipe.epochs"])
first = folder.parent.name == "rung-1"
accuracy = 0.3 + place / 1000 if first else 0.6 - place / 1000
rows = [f"{{epoch}},{{accuracy - 0.01 * (epochs - epoch)}},{{accuracy / 2}}" for epoch in range(1, epochs + 1)]
(folder / "metrics.csv").write_text("\\n".join(["epoch,val/top1,val/ema_top1", *rows]))
(folder / "checkpoints" / "last.ckpt").touch()
(folder / "summary.json").write_text(json.dumps(dict(top1=accuracy)))
"""


class Stub:
    """In the place of Python it trains in no time: in the first rung late places win, later early ones."""

    def __init__(self, folder):
        self.path, self._said = folder / "python", folder / "said.jsonl"
        self.path.write_text(PYTHON.format(python=sys.executable, said=self._said))
        self.path.chmod(0o755)

    @property
    def trainings(self):
        """What was trained so far: folder, argv and env of each."""
        return [json.loads(line) for line in self._said.read_text().splitlines()] if self._said.exists() else []


@pytest.fixture
def stub(tmp_path, monkeypatch):
    made = Stub(tmp_path)
    monkeypatch.setattr(sys, "executable", str(made.path))
    for module in (finalists, trainings):
        monkeypatch.setattr(module, "POLL", 0.05)
    return made


@pytest.fixture
def _no_pictures(monkeypatch):
    for name in ("draw_finalists", "draw_found"):
        monkeypatch.setattr(finalists, name, lambda *_: None)


@pytest.fixture
def searched(tmp_path):
    """A run whose search is over: it evaluated so many genotypes."""

    def make(pipeline, settings, genotypes=60):
        run_dir = tmp_path / "run"
        config = compose("S0", False, [*settings, f"run.dir={run_dir}"])
        RunFolder.of(pipeline, config, []).open(config).close()
        space, rng = SearchSpace.for_size("S0"), random.Random(0)
        journal = Journal({"space": "S0"}, run_dir / "journal.jsonl")
        found = [space.sample(rng) for _ in range(genotypes)]
        for number, one in enumerate(found, 1):
            scores = {"log_synflow": float(-number)}  # places are numbers
            journal.append(Evaluation(number, "size 1", "sample", scores, 1, 1, None, 0.0, 0.0, one.to_dict()))
        found[0].save(run_dir / "genotype.yaml")
        return run_dir, found

    return make


def rows(run):
    return list(csv.DictReader((run / "finalists.csv").open()))


class Logger(WandbLogger):
    """Stands in for W&B's; keeps the names of what it is told."""

    version, experiment = "1", None

    def __init__(self):
        self.told = []
        self.experiment = SimpleNamespace(log_artifact=lambda artifact: self.told.append(artifact.name))

    def log_hyperparams(self, params):
        self.told.append(sorted(params))

    def finalize(self, status):
        assert status == "success"

    def log_image(self, name, pictures):
        self.told += [name, *(Path(picture).exists() for picture in pictures)]


def test_the_winner_is_the_genotype_of_the_run(searched, stub, capsys, monkeypatch):
    run, found = searched("search", FOUR)
    logger = Logger()
    monkeypatch.setattr("pipelines.runtime.build.open_loggers", lambda *_: [logger])
    summary = search.main([*FOUR, f"run.dir={run}"])
    table = rows(run)
    assert [(row["rung"], row["epochs"]) for row in table] == [("1", "3")] * 4 + [("2", "9")] * 2
    places = [int(row["place"]) for row in table]
    assert sorted(places[:4], reverse=True) == places[:4] and 1 in places[:4]  # the best first
    assert sorted(places[:2]) == places[4:]
    winner = found[places[4] - 1]
    assert Genotype.load(run / "genotype.yaml") == winner
    assert table[4]["genotype"] == notation(winner)
    assert (float(table[4]["top1"]), float(table[4]["guide"])) == (pytest.approx(60 - places[4] / 10), -places[4])
    assert summary["finalists_winner_place"] == places[4]
    assert summary["finalists_top1"] == pytest.approx(0.6 - places[4] / 1000, abs=1e-4)
    assert summary["finalists_lead"] == pytest.approx((places[5] - places[4]) / 1000, abs=2e-4)
    assert summary["search_score"] == {"log_synflow": -places[4]}
    assert (run / "finalists.png").stat().st_size > 10_000 and (run / "genotype.png").exists()
    kept = [path.parent.parent.name for path in run.glob("finalists/*/*/checkpoints/last.ckpt")]
    assert [name[:3] for name in kept] == [f"{places[4]:03}"]
    assert f"place {places[4]} of the guide's ranking wins" in capsys.readouterr().out
    assert logger.told == [
        ["genotype", "macs", "params"],
        *("search/genotype", True, "search/finalists", True),
        "genotype-1",
    ]
    first = stub.trainings[0]["argv"]
    assert {"recipe.epochs=3", "recipe.warmup_epochs=1", "trainer.devices=1", "seed=0"} <= set(first)


@pytest.mark.usefixtures("_no_pictures")
def test_what_is_trained_is_not_trained_again(searched, stub, monkeypatch):
    run, _ = searched("search", FOUR)
    command = [*FOUR, f"run.dir={run}"]
    start, left = trainings.Trainings.start, iter(range(5))

    def dies(self, job):
        if next(left, None) is None:
            raise KeyboardInterrupt
        start(self, job)

    monkeypatch.setattr(trainings.Trainings, "start", dies)
    with pytest.raises(KeyboardInterrupt):
        search.main(command)
    plan = (run / "finalists" / "plan.json").read_bytes()
    monkeypatch.setattr(trainings.Trainings, "start", start)
    summary = search.main(command)
    folders = [one["folder"] for one in stub.trainings]
    assert len(folders) == len(set(folders)) == 6
    assert (run / "finalists" / "plan.json").read_bytes() == plan
    (run / "summary.json").unlink()
    assert search.main(command) | {"commands": ""} == summary | {"commands": ""}
    assert len(stub.trainings) == 6


@pytest.mark.usefixtures("_no_pictures")
def test_a_search_that_found_one_genotype_takes_it(searched, stub, capsys):
    run, found = searched("search", FOUR, 1)
    summary = search.main([*FOUR, f"run.dir={run}"])
    assert "search.finalists=4, but the search found only 1 different" in capsys.readouterr().out
    assert not stub.trainings and summary["finalists_winner_place"] == 1
    assert Genotype.load(run / "genotype.yaml") == found[0]


@pytest.mark.usefixtures("_no_pictures")
def test_minutes_become_epochs_once(searched, stub, monkeypatch):
    settings = [*FOUR, "recipe.epochs=50", "search.finalists_minutes=10"]
    run, _ = searched("search", settings)
    search.main([*settings, f"run.dir={run}"])
    plan = json.loads((run / "finalists" / "plan.json").read_text())
    assert plan["epoch_seconds"] == 6.0 and 0 <= plan["start_seconds"] < 60
    assert 20 <= plan["rungs"][1]["epochs"] <= 30 and plan["rungs"][0]["epochs"] == round(
        plan["rungs"][1]["epochs"] / 3
    )
    assert len(stub.trainings) == 7
    for file in (run / "summary.json", run / "finalists" / "result.json"):
        file.unlink()
    search.main([*settings, f"run.dir={run}"])
    assert len(stub.trainings) == 7


def test_a_training_that_fails_is_named(searched, stub, monkeypatch):
    run, _ = searched("search", FOUR)
    monkeypatch.setenv("EXIT", "3")
    with pytest.raises(ESFormerError, match=r"the training in .*rung-1/001-\w+ failed \(exit code 3\): no luck"):
        search.main([*FOUR, f"run.dir={run}"])


def test_a_training_that_is_asked_to_stop_stops_the_run(searched, stub, monkeypatch):
    run, _ = searched("search", FOUR)
    monkeypatch.setattr(trainings, "LATE", 0.0)
    monkeypatch.setenv("EXIT", str(STOPPED))
    with pytest.raises(SystemExit) as stopped:
        search.main([*FOUR, f"run.dir={run}"])
    assert stopped.value.code == STOPPED


@pytest.mark.nightly
def test_ranks_share_the_trainings(searched, stub, warm, tmp_path):
    run, found = searched("search", FOUR)
    script = tmp_path / "search.py"
    script.write_text(
        f"import sys\nsys.executable = {str(stub.path)!r}\n"
        "from pipelines import search\nfrom pipelines.runtime import cli\ncli.run(search.main)\n"
    )
    env = {"SLURM_JOB_ID": "1", "GROUP_WORLD_SIZE": "1", "LOCAL_SCRATCH": "/scratch"}
    ranks = warm.start_ranks(2, [script, *FOUR, f"run.dir={run}"], env=env)
    said = [rank.finish() for rank in ranks]
    table = rows(run)
    assert len(table) == 6 and Genotype.load(run / "genotype.yaml") == found[int(table[4]["place"]) - 1]
    assert "wins with" in said[0] and "wins with" not in said[1]
    trained = stub.trainings
    assert len({one["folder"] for one in trained}) == len(trained) == 6
    assert {one["parent"] for one in trained} == {ranks[0].pid, ranks[1].pid}
    for one in trained:
        assert one["env"]["LOCAL_SCRATCH"] == "/scratch"
        assert not [name for name in one["env"] if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC", "GROUP_"))]
        assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} & one["env"].keys()


@pytest.mark.parametrize(
    ("epochs", "warmup"), [((300, 20, 9), 1), ((300, 20, 30), 2), ((300, 20, 1), 0), ((300, 0, 9), 0), ((10, 1, 3), 1)]
)
def test_the_warm_up_keeps_its_proportion(epochs, warmup):
    whole, ramp, short = epochs
    config = compose("S0", False, [f"recipe.epochs={whole}", f"recipe.warmup_epochs={ramp}"])
    assert finalists.warmup(config, short) == warmup


def test_trainings_side_by_side_share_the_machine(monkeypatch):
    monkeypatch.setattr(finalists, "cpus", lambda: 8)
    config = compose("S0", False, ["search.workers=4", "data.workers=8"])
    alone = Plan("full", config, Processes(2, 1), RunFolder(Path(), ""))
    assert finalists.share(alone) == (4, [])
    assert {"data.workers=2", "trainer.threads=2"} <= set(finalists.machine(config, 4, []))
    assert finalists.share(replace(alone, gpus=("3", "5", "7"))) == (2, ["3", "5"])
    assert finalists.machine(config, 2, ["3", "5"]) == ("trainer.accumulate=auto", "data.workers=8")
    monkeypatch.setenv("LOCAL_RANK", "1")  # others make theirs
    ranks = Processes(2, 1, "torchrun", TorchElasticEnvironment())
    assert finalists.share(replace(alone, processes=ranks, gpus=("3", "5", "7"))) == (1, ["5"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.finalists=1", "search.finalists is 1; it must be from 2 to 1000, or 0 for none"),
        ("search.finalists_epochs=0", "search.finalists_epochs is 0; it must be at least 1"),
        ("search.finalists_minutes=0", "search.finalists_minutes is 0.0; it must be above 0, or null"),
    ],
)
def test_numbers_out_of_range_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        compose("S0", False, [setting])


def test_finalists_need_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ESFormerError, match=r"search.finalists=4 trains on images, but .*data.root"):
        search.main(["data=cifar10", "search.finalists=4", "data.root=nowhere"])
    assert not list(tmp_path.iterdir())


def test_an_ablation_has_none():
    with pytest.raises(ConfigError, match="search.finalists is for pipelines.full and pipelines.search"):
        ablate.main(["search.finalists=4"])


TINY = "search.starts=1 search.start_length=4 search.start_population=4 search.start_tournament=2 search.phase_length=4"
TINY += " search.population=4 search.tournament=2 search.total=12 search.unit=evaluations recipe.epochs=2"


def begun(run):
    """The training that is under way behind one that is over."""
    over = {path.parent for path in run.glob("finalists/*/*/summary.json")}
    under_way = {path.parents[1] for path in run.glob("finalists/*/*/checkpoints/last.ckpt")} - over
    return list(under_way) if over else []


@pytest.mark.nightly
def test_killed_among_its_finalists_the_whole_job_goes_on_there(tmp_path):
    run = tmp_path / "run"
    settings = [*FAST, *TINY.split(), "search.finalists=2", "search.finalists_epochs=2", f"run.dir={run}"]
    command = [sys.executable, "-m", "pipelines.full", *settings, "search.finalists_continue=true"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 600
    try:  # killed in the second epoch of the second network
        while not (interrupted := begun(run)):
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        first.kill()
        first.wait()
    (trained,) = run.glob("finalists/*/*/summary.json")
    written = trained.stat().st_mtime_ns
    second = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert second.returncode == 0, second.stdout + second.stderr
    assert trained.stat().st_mtime_ns == written
    assert "goes on after" in interrupted[0].with_suffix(".log").read_text()
    summary, table = json.loads((run / "summary.json").read_text()), rows(run)
    assert len(table) == 2 and summary["finalists_winner_place"] == int(table[0]["place"])
    assert notation(Genotype.load(run / "genotype.yaml")) == table[0]["genotype"]
    assert f"starting from {run}/finalists/rung-1/{int(table[0]['place']):03}" in second.stdout
    assert Path(summary["checkpoint"]).exists()
