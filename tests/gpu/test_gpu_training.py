"""A training on one GPU: like on the CPU but for rounding, in bf16, compiled, resumed, never waiting for the device."""

import csv
import re
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision

from callbacks.ema import EMA
from configs.compose import compose
from esformer.data.datamodule import Batch, ImageDataModule
from esformer.data.datasets import DataConfig
from esformer.errors import STOPPED
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule
from pipelines import evaluate, train
from pipelines.runtime import memory

DEVICE = torch.device("cuda", 0)
TINY = ["--quick", "wandb.mode=disabled", "trainer.accelerator=gpu", "recipe.epochs=2", "data.limit=512"]
TINY += ["recipe.batch_size=128", "trainer.log_every=1"]


def losses(folder):
    return [float(row["train/loss"]) for row in csv.DictReader((folder / "metrics.csv").open())]


def test_trains_as_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for device in ("gpu", "cpu"):
        precise = ["trainer.precision=32-true", f"trainer.accelerator={device}", f"run.dir={tmp_path / device}"]
        train.main([*TINY, *precise])
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=2e-2)


@pytest.mark.parametrize("setting", ["trainer.compile=true", "recipe=s2", "trainer.precision=16-mixed"])
def test_trains_by_default_in_bf16(setting, tmp_path):
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("needs a GPU with bfloat16")
    for name, more in {"plain": [], "other": [setting, "recipe.epochs=2", "recipe.batch_size=128"]}.items():
        more += ["recipe.warmup_epochs=0"] if "recipe=s2" in more else []
        found = train.main([*TINY, *more, f"run.dir={tmp_path / name}"])
        assert 0 <= found["top1"] <= 1
    assert "bf16-mixed" in (tmp_path / "plain" / "log.txt").read_text()
    if not setting.startswith("recipe"):
        assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=5e-2)


def test_goes_on_after_a_signal(warm, tmp_path):
    command = ["pipelines.train", *TINY, "recipe.epochs=10"]
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
        if trainer.global_step == 2:  # the first ones make moments, move constants and start cuDNN
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
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # as in pipelines.runtime.build
    try:
        trainer.fit(module, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step == 6


BIG = ["data=synthetic", "data.num_classes=1000", "data.img_size=224", "recipe.batch_size=1024"]
ROOM = 8 * 2**30
"""Bytes that a process may take, beside the share that must stay free: 1,024 images of S0 take 45 GiB."""


@pytest.fixture
def little_memory():
    """A device of which this process may have a little."""
    total = torch.cuda.get_device_properties(0).total_memory
    share = memory.SPARE + ROOM / total
    if share > 0.95:
        pytest.skip(f"needs a GPU with more than {memory.gib(1.1 * ROOM)}, and this one has {memory.gib(total)}")
    memory.free(DEVICE)
    torch.cuda.set_per_process_memory_fraction(share)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def tried(*settings):
    """What a trial of S0 finds."""
    config = compose("S0", overrides=[*BIG, *settings])
    return memory.accumulation(config, Genotype.shipped("esformer_s0"), DEVICE, 1, 1, 1.0)


def test_a_step_that_does_not_fit_is_accumulated(little_memory):
    number = tried()
    assert 2 <= number <= 32 and 1024 % number == 0
    assert tried(f"trainer.accumulate={number}") == number
    torch._C._cuda_clearCublasWorkspaces()
    assert torch.cuda.memory_allocated() < 4 * 2**20  # no network is left


def test_a_number_that_does_not_fit_is_refused_with_one_that_does(little_memory):
    with pytest.raises(memory.NoMemoryError) as caught:
        tried("trainer.accumulate=1")
    found = re.search(r"1024 images at a time .* do not fit .*trainer.accumulate=(\d+) \(the same", str(caught.value))
    assert found and int(found[1]) > 1


def test_memory_that_runs_out_in_training_is_a_sentence(tmp_path):
    torch.cuda.empty_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.runtime.memory.accumulation", lambda *_: 1)  # as if the trial had been mistaken
        torch.cuda.set_per_process_memory_fraction(5e-4)
        try:
            with pytest.raises(memory.NoMemoryError, match="go on with trainer.accumulate=2"):
                train.main([*TINY, "recipe.batch_size=256", f"run.dir={tmp_path / 'run'}"])
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


def test_evaluates_in_bf16_what_it_evaluates_in_full(tmp_path):
    train.main([*TINY, f"run.dir={tmp_path / 'run'}"])
    checkpoint, found = tmp_path / "run" / "checkpoints" / "last.ckpt", {}
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        words = [str(checkpoint), "--out", str(tmp_path / precision), "trainer.accelerator=gpu"]
        found[precision] = evaluate.main([*words, f"trainer.precision={precision}"])
    exact = found.pop("32-true")
    for name, report in found.items():
        assert report["precision"] == name and report["images"] == exact["images"]
        assert report["loss"] == pytest.approx(exact["loss"], rel=2e-2)
        assert report["top1"] == pytest.approx(exact["top1"], abs=0.05)


@pytest.mark.parametrize("waiting", ["module", "average"])
def test_a_validation_waits_for_nothing(waiting):
    module = ESFormerModule(Genotype.shipped("esformer_s0"), Recipe(), num_classes=10, img_size=32).to(DEVICE).eval()
    module.log = module.log_dict = lambda *_, **__: None
    ema, plugin = EMA(), MixedPrecision("bf16-mixed", "cuda")
    ema.setup(None, module, "fit")
    ema.ema.to(DEVICE), ema.accuracy.to(DEVICE)
    targets = torch.tensor([1, 2, -1, 3], device=DEVICE)
    batch = Batch(torch.rand(4, 3, 32, 32, device=DEVICE), targets, None)
    trainer = SimpleNamespace(precision_plugin=plugin)
    with torch.no_grad():
        for mode in ("default", "error"):  # the first batch starts cuDNN
            torch.cuda.set_sync_debug_mode(mode)
            try:
                if waiting == "module":
                    with plugin.val_step_context():
                        module.validation_step(batch, 0)
                else:
                    ema.on_validation_batch_end(trainer, module, None, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    counted = module.val_loss if waiting == "module" else ema.accuracy["top1"]
    assert counted.counted.item() == 6
