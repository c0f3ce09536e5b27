"""A training on one GPU: like on the CPU but for rounding, in bf16, compiled, resumed, never waiting for the device."""

import csv
import signal
import time

import pytest
import torch
from lightning import Callback, Trainer, seed_everything

from esformer.errors import STOPPED
from esformer.genotype import Genotype
from esformer.training.data import ImageDataModule
from esformer.training.datasets import DataConfig
from esformer.training.module import ESFormerModule
from esformer.training.recipe import Recipe
from pipelines import train

TINY = ["--quick", "wandb.mode=disabled", "trainer.accelerator=gpu", "recipe.epochs=2", "data.limit=512"]
TINY += ["recipe.batch_size=128", "trainer.log_every=1"]


def losses(folder):
    return [float(row["train/loss"]) for row in csv.DictReader((folder / "metrics.csv").open())]


def test_trains_as_on_the_cpu(tmp_path):
    for device in ("gpu", "cpu"):
        precise = ["trainer.precision=32-true", f"trainer.accelerator={device}", f"run.dir={tmp_path / device}"]
        train.main([*TINY, *precise])
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=2e-2)  # TF32 convolutions


@pytest.mark.parametrize("setting", ["trainer.compile=true", "recipe=s2", "trainer.precision=16-mixed"])
def test_trains_by_default_in_bf16(setting, tmp_path):
    for name, more in {"plain": [], "other": [setting, "recipe.epochs=2", "recipe.batch_size=128"]}.items():
        more += ["recipe.warmup_epochs=0"] if "recipe=s2" in more else []
        found = train.main([*TINY, *more, f"run.dir={tmp_path / name}"])
        assert 0 <= found["top1"] <= 1
    assert "bf16-mixed" in (tmp_path / "plain" / "log.txt").read_text()
    if not setting.startswith("recipe"):
        assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=5e-2)


def test_goes_on_after_a_signal(warm, tmp_path):
    command = ["pipelines.train", *TINY, "recipe.epochs=3"]
    warm.start([*command, f"run.dir={tmp_path / 'calm'}"]).finish()
    process, steps = warm.start([*command, f"run.dir={tmp_path / 'stopped'}"]), tmp_path / "stopped" / "steps.csv"
    while not steps.exists() or steps.read_text().count("\n") <= 5:
        assert process.poll() is None, process.output
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    process.finish(STOPPED)
    warm.start([*command, f"run.dir={tmp_path / 'stopped'}"]).finish()
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "calm"), rel=2e-2)


class NoWaiting(Callback):
    """PyTorch refuses whatever waits for the device, in all steps but the first ones."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 2:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 6:
            torch.cuda.set_sync_debug_mode("default")
            trainer.should_stop = True


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(clip_mode="agc", clip_grad=0.01, drop_path=0.2)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_waits_for_nothing(recipe, precision):
    seed_everything(0, verbose=False)
    recipe.batch_size = 128
    data = ImageDataModule(DataConfig("digits", img_size=32, num_classes=10, workers=0), recipe)
    module = ESFormerModule(Genotype.shipped("esformer_s0"), recipe, num_classes=10, img_size=32)
    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        precision=precision,
        max_epochs=recipe.epochs,
        callbacks=[NoWaiting()],
        log_every_n_steps=1000,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # as in pipelines.launch
    try:
        trainer.fit(module, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step == 6
