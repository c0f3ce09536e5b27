"""Two processes on the CPU train together as one does, and count every validation image once."""

import csv
import json
import re
import signal
import time

import pytest
import torch
from cpu_sync_batchnorm import SYNCED_TRAIN

import esformer
from esformer.checkpoint import read
from esformer.data.datamodule import ImageDataModule, SampleIndex, collate
from esformer.data.datasets import DataConfig
from esformer.errors import STOPPED
from esformer.recipe import Recipe

VALIDATION = 33  # odd: the two shares are not equal


@pytest.fixture
def folder(digits_in_folders):
    return digits_in_folders(233, VALIDATION)


@pytest.fixture
def runs(warm, folder, tmp_path):
    """The same training on one process and on two, with all that a recipe has; and what they say."""
    data = ["data=folder", f"data.root={folder}", "data.img_size=32", "data.workers=0"]
    recipe = ["recipe=quick", "recipe.epochs=2", "recipe.batch_size=40", "genotype=efficientformerv2_s0"]
    recipe += ["recipe.random_erasing=0.25", "recipe.auto_augment=rand-m9-n1", "recipe.mixup_prob=1.0"]
    recipe += ["recipe.drop_path=0.3"]
    machine = ["trainer.accelerator=cpu", "trainer.sync_batchnorm=true", "wandb.mode=disabled"]
    command = [SYNCED_TRAIN, *data, *recipe, *machine]
    one = warm.start([*command, f"run.dir={tmp_path / 'one'}"]).finish()
    two = [process.finish() for process in warm.start_ranks(2, [*command, f"run.dir={tmp_path / 'two'}"])]
    command += [f"run.dir={tmp_path / 'both'}", "trainer.log_every=1"]  # two, and after a stop in the second epoch one
    ranks, steps = warm.start_ranks(2, command), tmp_path / "both" / "steps.csv"
    while not steps.exists() or steps.read_text().count("\n") <= 6:
        assert ranks[0].poll() is None, ranks[0].output
        time.sleep(0.01)
    ranks[1].send_signal(signal.SIGUSR1)
    assert [rank.wait(60) for rank in ranks] == [STOPPED, STOPPED], ranks[0].output
    assert re.search("asked to stop in epoch 2, step [6-9]", ranks[0].output)
    warm.start(command).finish()
    return tmp_path, [one, "".join(two)]


@pytest.mark.nightly
def test_two_processes(runs, folder):
    root, said = runs
    for name in ("two", "both"):
        has_the_same_losses_as_one(root, name)
    count_each_image_once(root, said, folder)


def has_the_same_losses_as_one(root, other):
    one, two = (list(csv.DictReader((root / name / "metrics.csv").open())) for name in ("one", other))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert a["step"] == b["step"]
        assert float(b["train/loss"]) == pytest.approx(float(a["train/loss"]), rel=1e-5)
        assert float(b["val/loss"]) == pytest.approx(float(a["val/loss"]), rel=1e-2)  # 200 images' norm statistics
    ours, theirs = (read(root / name / "checkpoints" / "last.ckpt")["state_dict"] for name in (other, "one"))
    for name, value in theirs.items():
        if value.ndim > 1:  # the gradient of a bias before a norm is nothing but rounding errors
            assert (ours[name] - value).norm() <= 1e-3 * value.norm(), name


def count_each_image_once(root, said, folder):
    assert said[1].count("epoch 2 of 2:") == 1  # one process speaks
    summary = json.loads((root / "two" / "summary.json").read_text())
    config = DataConfig("folder", str(folder), img_size=32, num_classes=10, workers=0)
    data = ImageDataModule(config, Recipe(epochs=2, warmup_epochs=0, batch_size=40))
    data.setup("fit")
    batch = collate([data.val_set[SampleIndex(0, i, i)] for i in range(VALIDATION)])
    images = data.normalise(batch.images)
    for ema, name in ((False, "top1"), (True, "ema_top1")):
        network = esformer.load(summary["checkpoint"], ema=ema)
        with torch.no_grad():
            right = (network(images).argmax(1) == batch.targets).sum().item()
        assert summary[name] == pytest.approx(right / VALIDATION)
