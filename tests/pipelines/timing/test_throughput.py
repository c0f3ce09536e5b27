"""Throughput: timm's loop trains the same network in the same way, and the figures are those of the turns."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning import Callback
from timm.data import create_transform

from configs.compose import compose
from esformer.data.in_memory import InMemoryDataModule
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from pipelines import train
from pipelines.timing import interleaved, throughput
from pipelines.timing.interleaved import OURS, TIMM, Clock, Meter, StopMeasurement, own_steps
from pipelines.timing.throughput import Comparison
from pipelines.timing.timm_train import TimmTraining

GENOTYPE = Genotype.shipped("efficientformerv2_s0")
FAST = ["wandb.mode=disabled", "trainer.accelerator=cpu", "recipe.batch_size=4"]
PLAIN = ["recipe.mixup=0", "recipe.cutmix=0"]


def comparison(tmp_path, *settings):
    return Comparison(compose("S0", True, [*FAST, *settings]), GENOTYPE, tmp_path)


class Both(Callback):
    """Some steps of ours and of timm's from the same weights: losses, rates and clipped gradients of each."""

    def __init__(self, theirs, data, count):
        self.theirs, self.data, self.count = theirs, data, count
        self.seen = {OURS: [], TIMM: []}

    def on_train_epoch_start(self, trainer, pl_module):
        self.theirs.model.load_state_dict(pl_module.model.state_dict())
        steps = {OURS: own_steps(trainer, pl_module), TIMM: self.theirs.in_memory(*self.data.batch)}
        for side, optimizer in ((OURS, trainer.optimizers[0]), (TIMM, self.theirs.optimizer)):
            optimizer.register_step_pre_hook(partial(self._watch, self.seen[side]))
        for _ in range(self.count):
            for side in steps:
                loss = float(torch.as_tensor(next(steps[side])).detach())
                self.seen[side][-1]["loss"] = loss * (trainer.accumulate_grad_batches if side == OURS else 1)
        raise StopMeasurement

    @staticmethod
    def _watch(seen, optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        values = {"rate": optimizer.param_groups[0]["lr"], "norm": float(torch.nn.utils.get_total_norm(gradients))}
        values["head"] = gradients[-1].clone()
        seen.append(values)


@pytest.mark.nightly
@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.3), (2, 0.0)])
def test_timms_loop_takes_the_same_steps(tmp_path, accumulate, clip):
    settings = [f"recipe.clip_grad={clip}", "recipe.warmup_lr=1e-5"]
    settings += [f"trainer.accumulate={accumulate}", f"recipe.batch_size={8 * accumulate}"]
    both = comparison(tmp_path, *PLAIN, *settings)
    watch = Both(both._timm(both.memory), both.memory, 4)
    both._fit(both.memory, watch)
    ours, timm = watch.seen[OURS], watch.seen[TIMM]
    assert ours[0]["loss"] == pytest.approx(timm[0]["loss"], rel=1e-6)
    torch.testing.assert_close(ours[0]["head"], timm[0]["head"], rtol=1e-3, atol=1e-6)
    assert ours[-1]["loss"] < ours[0]["loss"]  # it trains
    for a, b in zip(ours, timm, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
        assert 0.2 < a["norm"] == pytest.approx(b["norm"], rel=0.05)
        assert not clip or a["norm"] < clip + 1e-4
        torch.testing.assert_close(a["head"], b["head"], rtol=0.3, atol=0.01)
    rises = [[step["rate"] - seen[0]["rate"] for step in seen] for seen in (ours, timm)]
    assert rises[0] == pytest.approx(rises[1]) and rises[0][-1] > rises[0][1] > 0


def test_timms_average_and_rate_follow_each_update(tmp_path):
    both = comparison(tmp_path, *PLAIN, "trainer.accumulate=2")
    training = both._timm(both.memory)
    before = [value.clone() for value in training.model.parameters()]
    losses = training.in_memory(*both.memory.batch)
    for updates in (1, 2):
        assert math.isfinite(next(losses)) and training.updates == updates
    recipe, steps = both.config.recipe, both.memory.steps_per_epoch
    rise = 2 * (recipe.lr - recipe.warmup_lr) / (recipe.warmup_epochs * steps)
    assert training.optimizer.param_groups[0]["lr"] - recipe.warmup_lr == pytest.approx(rise)
    averages = list(training.ema.module.parameters())
    moved = [(raw - old).abs().max() for raw, old in zip(training.model.parameters(), before, strict=True)]
    behind = [(raw - mean).abs().max() for raw, mean in zip(training.model.parameters(), averages, strict=True)]
    assert 0 < max(behind) < max(moved)


def test_timms_loader_gives_the_recipes_images(tmp_path):
    both = comparison(tmp_path, "recipe.mixup_prob=1.0")
    training = TimmTraining(GENOTYPE, both.config.recipe, both.config.data, 9, torch.device("cpu"))
    loader = training.loader(4)
    images, targets = next(iter(loader))
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32 and -2 < images.mean() < 2
    assert targets.shape == (4, 10) and torch.allclose(targets.sum(1), torch.ones(4), atol=0.01)
    assert len(loader) == 1437 // 4
    assert str(loader.dataset.transform) == str(
        create_transform(
            (3, 32, 32), is_training=True, use_prefetcher=True, scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.0,
            color_jitter=0.0, interpolation="bicubic", mean=(0.305,) * 3, std=(0.376,) * 3,
        )
    )  # fmt: skip


def test_batches_in_memory_are_mixed_anew_each_time(tmp_path):
    memory = comparison(tmp_path, "recipe.mixup_prob=1.0").memory
    assert isinstance(memory, InMemoryDataModule) and len(memory) == throughput.EPOCH // 4
    first, second = (memory.on_after_batch_transfer(batch, 0) for batch, _ in zip(memory, range(2), strict=False))
    assert first.images.shape == (4, 3, 32, 32) and not torch.equal(first.images, second.images)
    assert first.targets.shape == (4, 10)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_clock_counts_updates(monkeypatch, accumulate):
    trainer = type("Trainer", (), {"global_step": 0, "batch": 0})()
    monkeypatch.setattr("time.perf_counter", lambda: trainer.batch)
    meter = Meter(torch.device("cpu"))
    clock = Clock(meter, skip=2, steps=3)
    with pytest.raises(StopMeasurement):
        for trainer.batch in range(1, 100):
            trainer.global_step = trainer.batch // accumulate
            clock.on_train_batch_end(trainer)
    assert trainer.batch == 5 * accumulate and meter.seconds == {OURS: [3 * accumulate], TIMM: []}


def test_ratios_are_of_neighbouring_turns(tmp_path):
    worked = {OURS: [1.0, 2.0, 1.0], TIMM: [3.0, 6.0, 3.0]}
    meter = Meter(torch.device("cpu"), {OURS: [1.0, 2.0, 1.0], TIMM: [2.0, 3.0, 0.5]}, worked)
    line = comparison(tmp_path)._line(meter, 5)
    assert line["processor_ratio"] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert line["ratio"] == {"median": 1.5, "low": 1.0, "high": 1.75}
    assert line[OURS]["median"] == 20 and line[TIMM] == {"median": 10.0, "low": pytest.approx(25 / 3), "high": 25.0}


@pytest.mark.nightly
def test_the_command_prints_what_it_finds(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "TURNS", 1)
    monkeypatch.setattr(interleaved, "WARM", 1)
    monkeypatch.setattr(throughput, "WARM", 1)
    found = train.main(["--quick", *FAST, "genotype=efficientformerv2_s0", "--speed", "2"])
    assert list(found["lines"]) == ["step", "loop, images in memory", "loop, images of digits"]
    for line in found["lines"].values():
        for what in (OURS, TIMM, "ratio", "processor_ratio"):
            assert 0 < line[what]["low"] <= line[what]["median"] <= line[what]["high"] < math.inf
    printed = capfd.readouterr().out
    for text in (
        "batch 4",
        "32-true",
        "timm's train.py",
        "loop, images of digits",
        f"{found['lines']['step'][OURS]['median']:.4g}",
    ):
        assert text in printed, text
    assert not list(tmp_path.iterdir())


def test_a_gpus_figures_are_in_the_table():
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    line = dict.fromkeys((OURS, TIMM, "ratio", "processor_ratio"), spread)
    line |= {"busy": {OURS: 97.0, TIMM: 95.4}, "memory": {OURS: 2**31}}
    rows = throughput.table({"loop": line, "step": {**line, "busy": {}, "memory": {}}})
    assert rows[0][-2:] == ["GPU busy, percent", "memory, GiB"]
    assert rows[1][-2:] == ["ours 97, timm 95", "ours 2.00"] and rows[2][-2:] == ["", ""]
    assert throughput.table({"loop": {**line, "busy": {}, "memory": {}}})[0][-1] == "of processor time"


def test_images_that_are_not_there_leave_those_in_memory(monkeypatch):
    monkeypatch.delenv("IMAGENET", raising=False)
    seen = []
    monkeypatch.setattr(Comparison, "measure", lambda self, steps, data: seen.append((self, steps, data)) or {})
    monkeypatch.setattr(throughput, "show", lambda found: None)
    config = compose("S0", False, [*FAST, "data=folder", "data.root=/nowhere", "data.img_size=32"])
    throughput.speed(config, GENOTYPE, 7)
    [(both, steps, data)] = seen
    assert steps == 7 and data is None and both.memory.config.num_classes == 1000
    throughput.speed(replace(config, data=compose("S0", True).data), GENOTYPE, 7)
    assert seen[1][2].config.name == "digits"


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        (["trainer.precision=16-mixed"], 3, "trainer.precision is 16-mixed; --speed compares 32-true, bf16-mixed"),
        ([], 0, "0 steps are too few to measure"),
        (["recipe.batch_size=6", "trainer.accumulate=2"], 3, "recipe.batch_size=6 does not divide"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, steps, message):
    with pytest.raises(ESFormerError, match=message):
        throughput.speed(compose("S0", True, [*FAST, *settings]), GENOTYPE, steps)
