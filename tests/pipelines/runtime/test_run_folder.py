"""One folder a run: found again, refused to others; and what a user can mend, said in one sentence."""

import io
import json
import logging
import shutil
import sys
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from callbacks.checkpoints import AtomicCheckpointIO
from configs.compose import compose
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from pipelines import full, search, train
from pipelines.runtime import cli, training
from pipelines.runtime.logs import start_logging
from pipelines.runtime.plan import Plan
from pipelines.runtime.processes import Processes
from pipelines.runtime.run_folder import RunError, RunFolder

FAST = ["--quick", "wandb.mode=disabled", "trainer.accelerator=cpu"]
SEARCH = ["search.total=8", "search.start_length=2", "search.phase_length=2", "search.seeds=1"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGENET", raising=False)


def opened(pipeline, *settings):
    config = compose("S0", True, settings)
    return RunFolder.of(pipeline, config, []).open(config)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_is_printed_once_to_the_stdout_of_the_moment(terminal, monkeypatch):
    log = logging.getLogger("esformer")
    for text in ("one", "two"):
        screen = io.StringIO()
        screen.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdout", screen)
        start_logging()
        log.info(text)
        assert screen.getvalue().count(text) == 1


def test_the_default_folder_is_that_of_the_configuration():
    with opened("full") as run:
        assert run.path.parts[:-1] == ("runs",)
        assert run.path.name.startswith("full-S0-digits-")
    with opened("full", "trainer.devices=2") as again:
        assert again.path == run.path
    with opened("full", "seed=1") as other:
        assert other.path != run.path


def test_another_configuration_in_the_same_folder_is_refused(tmp_path):
    opened("full", "run.dir=r").close()
    before = (tmp_path / "r" / "config.yaml").read_text()
    with pytest.raises(RunError, match="r holds another run: seed was 0, is 1; choose another run.dir"):
        opened("full", "run.dir=r", "seed=1")
    with pytest.raises(RunError, match="it is a run of python -m pipelines.full"):
        opened("train", "run.dir=r")
    assert (tmp_path / "r" / "config.yaml").read_text() == before


def test_a_folder_at_work_or_with_other_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.runtime.run_folder.PATIENCE", 0.3)
    with opened("full", "run.dir=r"), pytest.raises(RunError, match="at work in r"):
        opened("full", "run.dir=r")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(RunError, match="no run but other files \\(thesis.tex\\)"):
        opened("full", "run.dir=mine")
    with pytest.raises(RunError, match="is a file"):
        opened("full", "run.dir=mine/thesis.tex")


def test_a_search_alone_needs_no_images_and_is_reproducible(tmp_path):
    first = search.main([*FAST, *SEARCH, "data=imagenet", "run.dir=a"])
    second = search.main([*FAST, *SEARCH, "data=imagenet", "run.dir=b"])
    genotype = Genotype.load(tmp_path / "a" / "genotype.yaml")
    assert genotype == Genotype.load(tmp_path / "b" / "genotype.yaml")
    assert genotype.space == "S0"
    assert first["search_evaluations"] == 8
    assert first["params"] == second["params"] <= 3.5e6
    assert json.loads((tmp_path / "a" / "summary.json").read_text()) == first
    assert (tmp_path / "a" / "search.png").stat().st_size > 10_000
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["search"]["total"] == 8
    assert first["commands"] == [
        f"python -m pipelines.search {' '.join([*FAST, *SEARCH, 'data=imagenet', 'run.dir=a'])}"
    ]


def test_training_takes_a_genotype_file_and_leaves_everything(tmp_path):
    Genotype.shipped("efficientformerv2_s0").save(tmp_path / "mine.json")
    command = [*FAST, "genotype=mine.json", "run.dir=t", "recipe.epochs=2", "recipe.batch_size=512"]
    summary = train.main(command)
    assert {"top1", "top5", "ema_top1", "ema_top5", "checkpoint", "params", "macs"} <= summary.keys()
    for name in ("config.yaml", "genotype.yaml", "metrics.csv", "training.png", "summary.json", "log.txt"):
        assert (tmp_path / "t" / name).stat().st_size > 0, name
    assert (tmp_path / "t" / "checkpoints" / "last.ckpt").exists()
    assert train.main(command) == summary


def test_what_is_refused_claims_no_folder(tmp_path):
    for wrong in ("recipe.auto_augment=foo", "trainer.precision=abc", "budget.macs=1", "data.num_classes=5"):
        with pytest.raises(ESFormerError):
            full.main([*FAST, wrong, "run.dir=claimed"])
    assert not (tmp_path / "claimed").exists()


@pytest.mark.nightly
def test_a_started_run_refuses_damaged_or_other_files(tmp_path):
    Genotype.shipped("efficientformerv2_s0").save(tmp_path / "mine.yaml")
    command = [*FAST, "genotype=mine.yaml", "run.dir=t", "recipe.epochs=1", "recipe.batch_size=1024"]
    train.main(command)
    (tmp_path / "t" / "summary.json").write_text("{")  # as good as unfinished
    checkpoint = tmp_path / "t" / "checkpoints" / "last.ckpt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ESFormerError, match="last.ckpt is damaged"):
        train.main(command)
    checkpoint.write_bytes(whole)
    Genotype.shipped("esformer_s0").save(tmp_path / "mine.yaml")
    with pytest.raises(ESFormerError, match="t trains another genotype"):
        train.main(command)
    Genotype.shipped("esformer_s0").save(tmp_path / "t" / "genotype.yaml")
    with pytest.raises(ESFormerError, match="last.ckpt is of another genotype"):
        train.main(command)
    (tmp_path / "t" / "config.yaml").write_text("[1, 2")
    with pytest.raises(ESFormerError, match="config.yaml is damaged"):
        train.main(command)


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_are_named_and_skipped_up_to_a_limit(tmp_path, workers):
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (32, 32)).save(tmp_path / split / label / f"{i}.png")
    for name in ("train/b/3.png", "val/a/2.png"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    settings = ["data=folder", f"data.root={tmp_path}", "data.img_size=32", f"data.workers={workers}"]
    settings += ["recipe=quick", "recipe.epochs=1", "recipe.batch_size=4", "genotype=efficientformerv2_s0"]
    settings += ["wandb.mode=disabled", "trainer.accelerator=cpu"]
    with pytest.raises(ESFormerError, match=r"is not an image that can be read .* more than data.max_corrupt=1 images"):
        train.main([*settings, "data.max_corrupt=1", "run.dir=ended"])
    train.main([*settings, "data.max_corrupt=2", "run.dir=t"])
    said = (tmp_path / "t" / "log.txt").read_text()
    for name in ("train/b/3.png", "val/a/2.png"):
        assert f"{tmp_path}/{name} is not an image that can be read" in said
    assert "skipped, as 2 of at most 2" in said


@pytest.mark.parametrize(
    ("pipeline", "arguments", "message"),
    [
        (full, [], "give their folder with data.root=FOLDER"),
        (full, ["--quick", "recipe.epoch=3"], "did you mean 'recipe.epochs'?"),
        (full, ["--quick", "budget.params=1e5"], "no genotype of space S0 fits a budget of 100,000 params"),
        (
            full,
            ["--quick", "search.size_proxy=magic"],
            "there is no proxy 'magic'; there are activations",
        ),
        (full, ["--quick", "trainer.accumulate=3"], "recipe.batch_size=64 does not divide"),
        (full, ["data=folder", "data.root=/nowhere"], "data.root is /nowhere, which is not a folder"),
        (full, ["--quick", "wandb.mode=maybe"], "wandb.mode is 'maybe'"),
        (full, ["--quick", "genotype=mine.yaml"], "genotype is a setting of pipelines.train"),
        (full, ["--quick", "trainer.accelerator=gpu"], "the trainer cannot run as the settings trainer.* ask"),
        (train, ["--quick", "genotype=nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_code_2(pipeline, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(
            lambda: pipeline.main([*arguments, "wandb.mode=disabled"] if "wandb" not in str(arguments) else arguments)
        )
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("what", ["renamed", "removed"])
def test_a_folder_that_is_gone_in_the_middle_of_a_training_is_named(tmp_path, what):
    with opened("train", "run.dir=r") as run:
        plan = Plan("train", compose("S0", True), Processes(1, 1), run)
        lost = FileNotFoundError(2, "No such file or directory", str(run.path / "steps.csv"))
        fit = SimpleNamespace()
        assert training._explained(lost, plan, fit) is lost  # of something else
        (tmp_path / "r").rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError):
            AtomicCheckpointIO().save_checkpoint({}, run.last)
        assert not run.path.exists()  # a checkpoint alone, which the same command would refuse
        if what == "removed":
            shutil.rmtree(tmp_path / "moved")
        says = "removed while this run" if what == "removed" else f"it is {tmp_path / 'moved'} now"
        with pytest.raises(RunError, match=says):
            training._explained(lost, plan, fit)
