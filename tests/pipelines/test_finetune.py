"""Fine-tuning as users do it: from a checkpoint of digits to others of them."""

import csv
import re
import shutil
import time

import pytest
import torch
from cpu_sync_batchnorm import SYNCED_TRAIN

import esformer
from configs.compose import compose, differences, to_yaml
from configs.schema import ConfigError
from esformer.checkpoint import open_checkpoint, read
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from pipelines import search, train
from pipelines.runtime.build import network
from pipelines.runtime.cli import USER_ERROR, run
from pipelines.runtime.run_folder import _default

MACHINE = ["trainer.accelerator=cpu", "wandb.mode=disabled"]
SHORT = ["recipe.epochs=2", "recipe.batch_size=16", "data.workers=0"]


@pytest.fixture(scope="module")
def parent(smallest, tmp_path_factory):
    """A short training of digits, whose averaged weights are not the raw ones."""
    folder = tmp_path_factory.mktemp("parent")
    short = ["data.limit=64", "recipe.epochs=1", "recipe.batch_size=32"]
    train.main(["--quick", f"genotype={smallest}", *short, *MACHINE, f"run.dir={folder}"])
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture
def command(digits_in_folders, parent, tmp_path):
    """Fine-tuning of a copy of it to larger images, in a folder whose classes are counted."""
    shutil.copy(parent, tmp_path / "start.ckpt")
    shutil.copytree(digits_in_folders(136, 40), tmp_path / "digits")
    data = ["data=folder", f"data.root={tmp_path / 'digits'}", "data.img_size=48"]
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "digits" / split / "9")
    return ["--from", str(tmp_path / "start.ckpt"), *data, *SHORT, *MACHINE]


def test_it_starts_from_the_averaged_weights(parent, caplog):
    config = compose(overrides=[f"init={parent}", "data=digits", "data.img_size=48"])
    config.data.num_classes = 9
    found = open_checkpoint(parent)
    module = network(config, found.genotype, start=found)
    assert "attention biases interpolated for another image size; a new classifier of 9 classes" in caplog.text
    want, raw = (esformer.load(parent, img_size=48, num_classes=9, ema=ema).state_dict() for ema in (True, False))
    own = {name: value for name, value in module.model.state_dict().items() if not name.startswith("head.")}
    assert all(torch.equal(value, want[name]) for name, value in own.items())
    assert not all(torch.equal(value, raw[name]) for name, value in own.items())


@pytest.mark.nightly
def test_what_it_becomes(command, parent, tmp_path):
    folder = tmp_path / "tuned"
    summary = train.main([*command, f"run.dir={folder}", "recipe.freeze=2", "recipe.lr=0.0005"])
    said = (folder / "log.txt").read_text()
    assert "a new classifier of 9 classes, in place of the 10 there" in said
    assert "data.mean is [0.485, 0.456, 0.406] here and was [0.305, 0.305, 0.305] in the training of" in said
    start, tuned = open_checkpoint(parent), open_checkpoint(summary["checkpoint"])
    assert (tuned.genotype, tuned.num_classes, tuned.img_size) == (start.genotype, 9, (48, 48))
    assert (tuned.recipe["freeze"], tuned.recipe["lr"], tuned.recipe["layer_decay"]) == (2, 5e-4, 0.9)
    origin = tuned.provenance["from"]
    assert origin["path"] == str(tmp_path / "start.ckpt") and origin["weights"] == "averaged"
    assert (origin["version"], origin["metrics"], origin["provenance"]) == (
        start.version,
        start.metrics,
        start.provenance,
    )
    for raw in (True, False):  # of the frozen stages, which are the start's
        there, here = start.weights(), tuned.weights(ema=not raw)
        frozen = [name for name in there if name.startswith(("stem.", "stages.0.", "stages.1."))]
        assert len(frozen) > 50 and all(torch.equal(there[name], here[name]) for name in frozen)
        trained = [name for name in there if name.startswith("stages.2.") and name.endswith("fc1.conv.weight")]
        assert trained and not any(torch.equal(there[name], here[name]) for name in trained)
    saved = (folder / "config.yaml").read_text()
    assert f"init: {tmp_path / 'start.ckpt'}" in saved and "layer_decay: 0.9" in saved
    with pytest.raises(ESFormerError, match="holds another run: init was .*start.ckpt, is .*other.ckpt"):
        shutil.copy(parent, tmp_path / "other.ckpt")
        command[1] = str(tmp_path / "other.ckpt")
        train.main([*command, f"run.dir={folder}", "recipe.freeze=2", "recipe.lr=0.0005"])


@pytest.mark.nightly
def test_killed_and_on_two_processes(command, warm, tmp_path):
    """Frozen stages, layer decay and all: a killed run goes on without its start; two processes do as one does."""
    command = [SYNCED_TRAIN, *command, "recipe.freeze=1", "recipe.drop_path=0.1"]
    command += ["trainer.sync_batchnorm=true", "trainer.log_every=1"]
    warm.start([*command, f"run.dir={tmp_path / 'one'}"]).finish()
    two = warm.start_ranks(2, [*command, f"run.dir={tmp_path / 'two'}"])
    for rank in two:
        rank.finish()
    process, steps = warm.start([*command, f"run.dir={tmp_path / 'killed'}"]), tmp_path / "killed" / "steps.csv"
    while not steps.exists() or steps.read_text().count("\n") <= 6:  # in the second epoch
        assert process.poll() is None, process.output
        time.sleep(0.01)
    process.kill()
    process.wait()
    (tmp_path / "start.ckpt").unlink()
    warm.start([*command, f"run.dir={tmp_path / 'killed'}"]).finish()

    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    assert (killed / "metrics.csv").read_text() == (one / "metrics.csv").read_text()
    ours, theirs = (read(folder / "checkpoints" / "last.ckpt") for folder in (killed, one))
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())
    assert ours["hyper_parameters"]["provenance"]["from"] == theirs["hyper_parameters"]["provenance"]["from"]
    rows = zip(*(csv.DictReader((folder / "metrics.csv").open()) for folder in (one, two)), strict=True)
    for a, b in rows:
        assert float(b["train/loss"]) == pytest.approx(float(a["train/loss"]), rel=1e-5)
        assert float(b["lr"]) == float(a["lr"])


@pytest.mark.nightly
def test_a_rehearsal_leaves_nothing(command, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.runtime.dry_run.STEPS", 2)
    found = train.main([*command, f"run.dir={tmp_path / 'run'}", "--dry-run"])
    assert found["steps"] == 10 and found["genotype"] == "S0"
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "images", "start.ckpt"}


def test_the_checkpoint_brings_its_size_and_a_recipe(tmp_path):
    weights = esformer.ESFormer(Genotype.shipped("esformer_s1"), 10, img_size=32).state_dict()
    torch.save(weights, tmp_path / "s1.pt")
    config = compose(overrides=[f"init={tmp_path / 's1.pt'}"])
    assert (config.size, config.budget.params, config.recipe.layer_decay) == ("S1", 6e6, 0.9)
    assert compose(overrides=["init=a", "recipe=quick", "recipe.lr=0.1"]).recipe.layer_decay == 1
    quick = compose("S0", True, ["init=a"])
    assert (quick.data.name, quick.recipe) == ("digits", compose("S2", overrides=["recipe=finetune"]).recipe)


def test_runs_from_before_there_was_fine_tuning_go_on():
    now = to_yaml(compose(overrides=["data.decoder=pil"]))
    before = re.sub(r"^init.*\n|^  (layer_decay|freeze|decoder):.*\n", "", now, flags=re.MULTILINE)
    assert now.count("\n") - before.count("\n") == 4
    assert differences(before, now) == []
    assert differences("{}", before) == differences("{}", now)  # after which the run's folder is named
    assert _default("train", compose()) == _default("train", compose(overrides=["data.decoder=pil"]))  # it is found
    changed = to_yaml(compose(overrides=["recipe.freeze=2"]))
    assert differences(before, changed) == ["data.decoder was pil, is torchvision", "recipe.freeze was 0, is 2"]
    assert differences(changed, before)[0] == "data.decoder was torchvision, is pil"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--from", "nowhere.ckpt"], "nowhere.ckpt is neither a file nor one of"),
        (["--from", "esformer_s0"], "esformer_s0 is an architecture without trained weights"),
        (["--from", "cut.ckpt"], "cut.ckpt is damaged, or is no file of weights"),
        (["--from", "foreign.pt"], "foreign.pt: it holds no weights of an ESFormer but 'fc.weight'"),
        (["--from", "incomplete.pt"], "incomplete.pt: its weights are of another network: norm.bias is missing there"),
        (["--from", "start.ckpt", "genotype=esformer_s0"], "genotype=esformer_s0 is not that of start.ckpt"),
        (["--from", "start.ckpt", "--size", "S1"], "size is S1, but start.ckpt holds an S0; leave the size out"),
        (["--from", "start.ckpt", "recipe.freeze=7"], "recipe.freeze is 7; it must be from 0 to the 4 stages"),
        (["--from", "start.ckpt", "recipe.layer_decay=0"], "recipe.layer_decay is 0.0; it must be above 0"),
        (["--from", "start.ckpt", "recipe.freeze=1", "--speed"], "train.py trains all stages, so --speed needs 0"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_claimed(wrong, message, parent, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(parent, "start.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(parent.read_bytes()[:-5000])
    torch.save({"fc.weight": torch.zeros(2)}, "foreign.pt")
    weights = open_checkpoint(parent).weights()
    torch.save({name: value for name, value in weights.items() if name != "norm.bias"}, "incomplete.pt")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended:
        run(lambda: train.main(["data=digits", *MACHINE, *wrong]))
    assert ended.value.code == USER_ERROR
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_search_starts_from_nothing(parent):
    with pytest.raises(ConfigError, match="init is a setting of pipelines.train; a search finds its own genotype"):
        search.main([f"init={parent}", *MACHINE])


def test_an_empty_name_is_no_scratch(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:  # such as of a variable of the shell that is not set
        short = ["--quick", "data.limit=64", "recipe.epochs=1", "recipe.batch_size=32"]  # if it trained all the same
        run(lambda: train.main(["--from", "", *short, f"run.dir={tmp_path / 'r'}", *MACHINE]))
    assert end.value.code == USER_ERROR and not (tmp_path / "r").exists()
    assert "init is empty; it must be text or null" in capsys.readouterr().err
