"""Two processes on the CPU train together, and count every validation image once."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import esformer
from esformer.training.data import ImageDataModule
from esformer.training.datasets import DataConfig
from esformer.training.recipe import Recipe

VALIDATION = 33  # odd: the two shares are not equal


@pytest.fixture
def folder(tmp_path):
    images, labels = load_digits(return_X_y=True)
    for i, (pixels, label) in enumerate(zip(images[:233], labels[:233], strict=True)):
        where = tmp_path / "images" / ("val" if i < VALIDATION else "train") / str(label)
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8)).save(where / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.slow
def test_two_processes(folder, tmp_path):
    settings = ["data=folder", f"data.root={folder}", "data.img_size=32", "data.workers=0", "recipe=quick"]
    settings += [
        "recipe.epochs=3",
        "genotype=efficientformerv2_s0",
        "wandb.mode=disabled",
        f"run.dir={tmp_path / 'run'}",
    ]
    settings += ["trainer.accelerator=cpu", "trainer.devices=2", "recipe.batch_size=40"]
    command = [sys.executable, "-m", "pipelines.train", "--size", "S0", *settings]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 3 of 3") == 1  # one process speaks
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())

    config = DataConfig("folder", str(folder), img_size=32, num_classes=10, workers=0)
    data = ImageDataModule(config, Recipe(epochs=2, warmup_epochs=0, batch_size=40))
    data.setup("fit")
    images, labels = zip(*(data.val_set[i] for i in range(VALIDATION)), strict=True)
    for ema, name in ((False, "top1"), (True, "ema_top1")):
        network = esformer.load(summary["checkpoint"], ema=ema)
        with torch.no_grad():
            right = (network(torch.stack(images)).argmax(1) == torch.tensor(labels)).sum().item()
        assert summary[name] == pytest.approx(right / VALIDATION)
