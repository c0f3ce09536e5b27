"""The evaluation as people use it: right after a training, on other images, on several processes, and used wrongly."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import esformer
from esformer.checkpoint import open_checkpoint, save_weights
from esformer.checkpoint.loading import network_of
from esformer.data.base import DataError
from esformer.data.datamodule import EvaluationDataModule
from esformer.data.datasets import DataConfig, resolve
from pipelines import evaluate, train
from pipelines.runtime import cli

ROOT = Path(__file__).parents[2]
CPU = ["trainer.accelerator=cpu", "data.workers=0", "--batch-size", "64"]
CLOCK = ("latency", "images_per_second", "devices", "command")
"""What two evaluations of the same weights may differ in."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, smallest):
    """The folder of a training on digits, and its summary."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    quick = ["--quick", "wandb.mode=disabled", "trainer.accelerator=cpu", "recipe.epochs=2"]
    summary = train.main([*quick, f"genotype={smallest}", f"run.dir={folder}"])
    log = logging.getLogger("esformer")  # writes to what is the standard output here and now
    log.propagate, log.handlers = True, []
    return folder, summary


@pytest.fixture(scope="module")
def weights(trained, tmp_path_factory):
    """The averaged weights as a safetensors file that knows the digits."""
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    open_checkpoint(trained[0] / "checkpoints" / "last.ckpt").save(path)
    return path


@pytest.fixture
def altered(weights, tmp_path):
    """Write the weights with something else said of them, or fitted to another network."""

    def alter(said=None, **asked):
        found = open_checkpoint(weights)
        about = found.describe() | (said or {})
        if "img_size" in asked:
            about["img_size"] = list(asked["img_size"])
        save_weights(tmp_path / "altered.safetensors", network_of(found, **asked).state_dict(), about)
        return str(tmp_path / "altered.safetensors")

    return alter


@pytest.mark.slow
def test_it_finds_what_the_training_reported(trained, capsys):
    folder, summary = trained
    last = folder / "checkpoints" / "last.ckpt"
    reports = {}
    for name, flags in {"ema_": [], "": ["--raw"]}.items():
        reports[name] = report = evaluate.main([str(last), *CPU, *flags])
        assert report["top1"] == pytest.approx(summary[f"{name}top1"], rel=1e-6)
        assert report["top5"] == pytest.approx(summary[f"{name}top5"], rel=1e-6)
    assert (reports["ema_"]["weights"], reports[""]["weights"]) == ("averaged", "raw")
    assert report["images"] == 360
    assert (report["params"], report["macs"]) == (summary["params"], summary["macs"])
    assert report["latency"]["ms"] > 0 < report["images_per_second"]
    results = folder / "checkpoints" / "last-evaluation"
    assert sorted(path.name for path in results.iterdir()) == [
        *("classes.csv", "confusion.png", "evaluation.json", "mistakes.png")
    ]
    assert json.loads((results / "evaluation.json").read_text()) == report
    assert "<h2>Evaluation: last-evaluation</h2>" in (folder / "report.html").read_text()
    rows = list(csv.DictReader((results / "classes.csv").open()))
    assert [row["class"] for row in rows] == list("0123456789")
    assert sum(float(row["top1"]) * int(row["images"]) for row in rows) == pytest.approx(360 * report["top1"])
    assert Image.open(results / "confusion.png").width > 500
    shown = capsys.readouterr().out
    assert "evaluation: 360 of 360 images" in shown
    for word in ("calibration error", "images per second", "most often taken for", f"{100 * report['top1']:.2f} %"):
        assert word in shown


def test_the_figures_are_those_of_the_network_that_load_gives(weights, tmp_path):
    report = evaluate.main([str(weights), *CPU, "--out", str(tmp_path / "out")])
    network = esformer.load(weights)
    data = EvaluationDataModule(resolve(DataConfig("digits", **given(weights), num_classes=10, workers=0)), 360)
    data.setup("validate")
    [batch] = data.val_dataloader()
    with torch.no_grad():
        logits = network(data.normalise(batch.images)).double()
    taken = logits.argmax(1)
    assert report["top1"] == (taken == batch.targets).double().mean()
    assert report["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, batch.targets).item(), rel=1e-5)
    for number, row in enumerate(report["classes"]):
        wrong = taken[(batch.targets == number) & (taken != number)]
        assert row["taken_for_images"] == (wrong.bincount().max() if len(wrong) else 0)
        assert row["precision"] == pytest.approx((batch.targets[taken == number] == number).double().mean().item())


def given(path):
    """How a checkpoint's images are prepared."""
    data = open_checkpoint(path).data
    return {"img_size": 32} | {word: data[word] for word in ("mean", "std", "interpolation", "crop_pct")}


@pytest.mark.nightly
def test_several_processes_count_each_image_once(weights, warm, digits_in_folders, tmp_path):
    images = digits_in_folders(37, 37)  # shares are not equal; the last image is alone on one process, not on two
    corrupt = sorted((images / "val").rglob("*.png"))[5]
    corrupt.write_text("no image")
    command = ["pipelines.evaluate", weights, f"data.root={images}", *CPU[:2], "--batch-size", "12", "--out"]
    warm.start([*command, tmp_path / "one"]).finish()
    said = "".join(rank.finish() for rank in warm.start_ranks(2, [*command, tmp_path / "two"]))
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert one["images"] == sum(row["images"] for row in one["classes"]) == 36
    assert one["corrupt"] == [str(corrupt)]
    assert two["devices"] == 2
    for name in ("loss", "calibration_error"):
        assert two[name] == pytest.approx(one.pop(name), rel=1e-12), name
    assert {name: two[name] for name in one if name not in CLOCK} == {n: one[n] for n in one if n not in CLOCK}
    assert said.count("most often taken for") == 1  # one process speaks
    assert (tmp_path / "one/mistakes.png").read_bytes() == (tmp_path / "two/mistakes.png").read_bytes()
    assert said.count(f"{corrupt} is not an image that can be read") == 1


def test_what_the_checkpoint_knows_is_the_default_and_what_is_written_wins(weights, altered, capsys):
    def composed(checkpoint, *settings):
        with pytest.raises(SystemExit):
            evaluate.main([str(checkpoint), *settings, "--print-config"])
        return yaml.safe_load(capsys.readouterr().out)["data"]

    data = composed(weights)
    assert {word: data[word] for word in given(weights)} == given(weights)
    assert data["name"] == "digits"
    other = composed(weights, "data=cifar10", "data.crop_pct=0.5")
    assert (other["name"], other["crop_pct"]) == ("cifar10", 0.5)
    assert (other["mean"], other["img_size"]) == (data["mean"], 32)
    assert composed(weights, "data.img_size=64", "data.mean=[0,0,0]")["img_size"] == 64
    assert composed(weights, "data.root=/mine")["name"] == "folder"  # digits lie in no folder
    assert composed(altered({"data": {"name": "imagenet"}}))["name"] == "imagenet"
    assert composed(altered({"data": {}}))["name"] == "folder"
    assert composed(altered({"data": {}}), "--quick")["name"] == "digits"


def test_another_size_of_the_images_is_evaluated_too(altered, tmp_path, capsys):
    wide = altered(img_size=(32, 64))
    report = evaluate.main([wide, *CPU, "data.img_size=64", "--out", str(tmp_path / "out")])
    assert report["data"]["img_size"] == 64
    assert report["macs"] > 4 * 1_405_360
    assert "attention biases interpolated for another image size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"classes": [*"01234567", "eight", "9"]}, "class 8 is 'eight' in the checkpoint and '8' in the images"),
        ({"mean": None, "std": None}, "does not say how its images were prepared; here they are with mean [0.305"),
    ],
)
def test_doubts_are_said(altered, weights, tmp_path, capsys, said, message):
    data = {name: value for name, value in (open_checkpoint(weights).data | said).items() if value is not None}
    report = evaluate.main([altered({"data": data}), *CPU, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().out
    assert [row["class"] for row in report["classes"]] == [*"0123456789"]  # a row is of the images of this class


def test_images_without_names_of_their_own_have_the_checkpoints(altered, tmp_path):
    names = [f"class {number}" for number in range(10)]
    data = {"name": "synthetic", "classes": names, "mean": [0.5] * 3, "std": [0.5] * 3}
    settings = ["data.num_classes=10", "data.val_images=8", "--out", str(tmp_path / "out")]
    report = evaluate.main([altered({"data": data}), *CPU, *settings])
    assert [row["class"] for row in report["classes"]] == names


def test_an_architecture_by_name_can_be_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = ["data=synthetic", "data.val_images=8", "data.img_size=32", "trainer.accelerator=cpu", "data.workers=0"]
    report = evaluate.main(["esformer_s0", *settings, "--batch-size", "4"])
    assert report["images"] == 8
    assert len(report["classes"]) == 1000
    assert (tmp_path / "esformer_s0-evaluation" / "evaluation.json").exists()
    assert report["weights"] == "random"
    printed = capsys.readouterr().out
    assert "esformer_s0: its weights are random" in printed
    assert printed.count(" - ") > 30  # classes without images, ten of the best and ten of the worst


def test_random_weights_in_a_file_are_said_to_be_random(altered, tmp_path, capsys):
    path = altered({"weights": "random"})
    report = evaluate.main([path, *CPU, "data.limit=40", "--out", str(tmp_path / "out")])
    assert report["weights"] == "random"
    assert f"{path}: its weights are random" in capsys.readouterr().out


WRONG = {
    "no file": (["nowhere.ckpt"], "nowhere.ckpt is neither a file nor one of"),
    "text": (["text.ckpt"], "text.ckpt is damaged, or is no file of weights"),
    "no root": (["W", "data=folder"], "give their folder with data.root=FOLDER"),
    "no validation images": (["W", "data.root=training"], "training must hold the folders train and val"),
    "other classes": (["W", "data.root=two"], "knows 10 classes, and the images of two have 2"),
    "raw weights": (["W", "--raw"], "holds averaged weights only"),
    "out is a file": (["W", "--out", "text.ckpt"], "text.ckpt is a file; choose a folder as --out"),
    "no such setting": (["W", "data.rot=x"], "did you mean 'data.root'?"),
    "no such device": (["W", "trainer.accelerator=tpu"], "the trainer cannot run as the settings trainer.* ask"),
    "images too large": (["W", "data.img_size=8192"], "data.img_size is 8192; it must be at most 2,048"),
    "no images at a time": (["W", "--batch-size=0"], "--batch-size is 0; it must be from 1 to 1,000,000"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_sentence_before_any_work(wrong, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.ckpt").write_text("hello")
    for name in ("two/val/a", "two/val/b", "training/train/a"):
        Path(name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(f"{name}/1.png")
    before = sorted(tmp_path.rglob("*"))
    arguments, message = WRONG[wrong]
    refused([str(weights) if word == "W" else word for word in arguments], message, capsys)
    assert sorted(tmp_path.rglob("*")) == before
    assert not weights.with_name("digits-evaluation").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"img_size": (32, 64)}, "takes images of 32 x 64 pixels, and ours are square: give data.img_size=PIXELS"),
        ({"in_chans": 1}, "takes images of 1 channels; ours have 3"),
        ({"num_classes": 0}, "holds no classifier"),
    ],
)
def test_networks_for_something_else_are_refused(altered, asked, message, capsys):
    refused([altered(**asked)], message, capsys)


def test_a_checkpoint_for_images_that_are_too_large(altered, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.runtime.checkpoint.LARGEST_IMAGE", 63)
    refused([altered(img_size=(64, 64))], "the image size is 64 x 64; it must be at most 63 pixels each way", capsys)


def refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: evaluate.main(arguments))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_result_stays_until_another_is_complete(weights, altered, tmp_path, capsys):
    command = [*CPU, "--out", str(tmp_path / "out")]
    evaluate.main([str(weights), *command])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    found = open_checkpoint(weights)
    bad = {name: value * np.nan if name.startswith("head.") else value for name, value in found.weights().items()}
    save_weights(tmp_path / "bad.safetensors", bad, found.describe())
    refused([str(tmp_path / "bad.safetensors"), *command], "the network gives no finite numbers", capsys)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_too_many_corrupt_images_end_it_and_leave_nothing(weights, digits_in_folders, tmp_path, capsys):
    images = digits_in_folders(33, 33)
    for path in (images / "val").rglob("*.png"):
        path.write_text("no image")
    command = [str(weights), f"data.root={images}", *CPU, "--out", str(tmp_path / "out")]
    refused([*command, "data.max_corrupt=3"], "that makes more than data.max_corrupt=3 images", capsys)
    refused([*command], "none of the 33 images can be read", capsys)
    assert not (tmp_path / "out").exists()


def test_validation_images_alone_are_enough_for_an_evaluation_only(digits_in_folders):
    images = digits_in_folders(33, 33)
    config = DataConfig("folder", str(images), num_classes=None, train_images=5, limit=7)
    assert resolve(config, train=False).num_classes == 10
    with pytest.raises(DataError, match="must hold the folders train and val, .* it has none for training"):
        resolve(DataConfig("folder", str(images), num_classes=None))
