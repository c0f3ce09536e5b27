"""A step is tried before a run: which arithmetic, how many batches, and what is said where nothing fits."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from callbacks.accumulation import Accumulation
from configs.compose import compose
from configs.schema import ConfigError
from esformer.checkpoint import read
from esformer.data.base import DataError
from esformer.genotype import Genotype
from esformer.training.module import ESFormerModule
from pipelines import full, train
from pipelines.runtime import memory, searching
from pipelines.runtime.memory import NoMemoryError, Trial, accumulation, activations, check_precision, precision
from pipelines.runtime.run_folder import RunFolder

GIB, GPU, CPU = 2**30, torch.device("cuda", 0), torch.device("cpu")
QUICK = [
    "--quick",
    "trainer.accelerator=cpu",
    "wandb.mode=disabled",
    "recipe=quick",
    "recipe.epochs=1",
    "data.limit=64",
]


@pytest.fixture
def s0():
    return Genotype.shipped("esformer_s0_paper")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of so many GiB, on which an image takes 0.1 GiB, in bf16 half of it, with checkpointing a third."""
    tried = []
    words = itertools.cycle([torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")])

    def make(room):
        def take_steps(config, module, device, images, parts, spare):
            each = 0.1 * GIB * (0.5 if "bf16" in precision(config.trainer) else 1)
            each *= 1 / 3 if config.trainer.grad_checkpointing else 1
            tried.append((images, parts))
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
            if spare + images * each > room * GIB:
                raise next(words)

        monkeypatch.setattr(memory, "take_steps", take_steps)
        monkeypatch.setattr(Trial, "total", room * GIB)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room * GIB // 2, room * GIB))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
        monkeypatch.setattr(memory, "free", lambda device: None)
        return tried

    monkeypatch.setattr(memory, "_found", {})
    monkeypatch.setattr(memory, "isolate_rng", lambda: isolated())
    return make


def isolated():
    from lightning.pytorch.utilities.seed import isolate_rng

    return isolate_rng(include_cuda=False)


def config_of(*settings):
    return compose("S0", overrides=["data=synthetic", "data.img_size=32", *settings])


def test_auto_finds_the_fewest_batches_that_fit(gpu, s0, caplog):
    tried = gpu(30)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with caplog.at_level("INFO", "esformer"):
        config = config_of("trainer.precision=32-true")
        assert accumulation(config, s0, GPU, 1, 1, 1.0) == 4  # 25.6 and 5 % of 30 GiB
    assert tried == [(1024, 1), (512, 2), (256, 2)]
    assert "trainer.accumulate=auto: 4 batches of 256 images a step" in caplog.text
    assert accumulation(config, s0, GPU, 1, 1, 1.0) == 4 and len(tried) == 3  # known
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(states[0], after[0]) and states[1:] == after[1:]


@pytest.mark.parametrize(
    ("settings", "world", "margin", "number"),
    [
        (["trainer.precision=auto"], 1, 1.0, 2),  # bf16-mixed
        (["trainer.precision=32-true"], 1, 1.25, 8),  # of 320, 160 are tried
        (["trainer.precision=32-true"], 8, 1.0, 1),
        (["trainer.precision=32-true", "recipe.batch_size=24"], 4, 1.0, 1),
        (["trainer.precision=32-true", "recipe.batch_size=1200"], 1, 1.0, 5),
        (["trainer.precision=32-true", "trainer.accumulate=16"], 1, 1.0, 16),
    ],
)
def test_what_fits(gpu, s0, settings, world, margin, number):
    gpu(30)
    assert accumulation(config_of(*settings), s0, GPU, world, world, margin) == number


@pytest.mark.parametrize(
    ("room", "settings", "sentence"),
    [
        (60, ["trainer.precision=32-true", "trainer.accumulate=1"], "trainer.accumulate=1: 1024 images at a time in"
        " 32-true do not fit into the 60.0 GiB of cuda:0, of which 30.0 GiB are free; trainer.accumulate=2 (the same"
        " training) or trainer.precision=bf16-mixed or trainer.grad_checkpointing=true would fit"),
        (30, ["trainer.accumulate=1"], "trainer.accumulate=1: 1024 images at a time in bf16-mixed do not fit into the"
        " 30.0 GiB of cuda:0, of which 15.0 GiB are free; trainer.accumulate=2 (the same training) or"
        " trainer.grad_checkpointing=true would fit"),
        (0.05, ["trainer.grad_checkpointing=true", "trainer.precision=32-true"], "2 images at a time in 32-true do not"
        " fit into the 0.1 GiB of cuda:0, of which 0.0 GiB are free; trainer.precision=bf16-mixed would fit"),
        (0.01, [], "are free; this network needs a device with more memory"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_would(gpu, s0, room, settings, sentence):
    gpu(room)
    with pytest.raises(NoMemoryError) as caught:
        accumulation(config_of(*settings), s0, GPU, 1, 1, 1.0)
    assert sentence in str(caught.value)


def test_a_batch_that_does_not_divide_is_refused_as_ever(gpu, s0):
    gpu(30)
    with pytest.raises(DataError, match="batch_size=1024 does not divide into even batches for 6 devices x 1"):
        accumulation(config_of(), s0, GPU, 6, 6, 1.0)


def test_the_steps_of_a_trial_are_those_of_a_training(smallest, monkeypatch):
    config, seen = config_of("recipe=s2", "trainer.precision=bf16-mixed"), []
    step = ESFormerModule.training_step

    def watched(self, batch, number):
        seen.append(
            (len(batch.images), batch.targets.shape, self.trainer.global_step, torch.is_autocast_enabled("cpu"))
        )
        return step(self, batch, number)

    monkeypatch.setattr(ESFormerModule, "training_step", watched)
    module = Trial(config, Genotype.load(smallest), CPU, 1, 1)._module()
    before = module.model.head.weight.clone()
    memory.take_steps(config, module, CPU, 4, 2)
    assert seen == [(4, (4, 1000), number // 2, True) for number in range(4)]
    assert not torch.equal(before, module.model.head.weight)


@pytest.mark.parametrize(("arithmetic", "gibibytes"), [("32-true", 88), ("bf16-mixed", 45)])
def test_activations_are_those_that_were_measured_on_1024_images(s0, arithmetic, gibibytes):
    trial = Trial(compose("S0", overrides=["data=synthetic"]), s0, CPU, 1, 1)
    parameters, each = activations(trial._module(drop_path=0.0).model, arithmetic, 224)
    assert parameters == pytest.approx(4 * 3.5e6, rel=0.05)
    assert 1024 * each == pytest.approx(gibibytes * GIB, rel=0.08)


def test_checkpointing_needs_less_but_not_nothing(smallest):
    trial = Trial(config_of(), Genotype.load(smallest), CPU, 1, 1)
    plain, saving = (replace(trial, config=config_of(f"trainer.grad_checkpointing={on}")) for on in ("false", "true"))
    whole, part = (t.needed(1024) - t.needed(2) for t in (plain, saving))
    assert 0.2 * whole < part < 0.9 * whole


def test_on_the_cpu_the_memory_that_is_there_decides(s0, monkeypatch):
    monkeypatch.setattr(memory, "_found", {})
    monkeypatch.setattr(memory, "available_memory", lambda: 4 * GIB)
    config = config_of("data.img_size=96")
    trial = Trial(config, s0, CPU, 1, 1)
    number = accumulation(config, s0, CPU, 1, 1, 1.0)
    assert number > 1 and trial.needed(1024 // number) <= 4 * GIB < trial.needed(2 * 1024 // number)
    monkeypatch.setattr(memory, "available_memory", lambda: 8 * GIB)
    assert accumulation(config, s0, CPU, 2, 2, 1.25) >= number // 2  # two share it, and have half of the images each
    monkeypatch.setattr(memory, "available_memory", lambda: 4 * GIB)
    config.trainer.accumulate = 1
    with pytest.raises(NoMemoryError, match=rf"and there are 4\.0 GiB for .*; trainer\.accumulate={number} \(the same"):
        accumulation(config, s0, CPU, 1, 1, 1.0)


def test_a_containers_limits_count(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    for group, limit, used, files in (("a", 10 * GIB, 4 * GIB, GIB), ("a/b", "max", 0, 0)):
        folder = tmp_path / group
        folder.mkdir()
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 7\ninactive_file {files}\n")
    assert min(memory._cgroup_rooms(tmp_path, own)) == 7 * GIB
    first = tmp_path / "memory" / "job"
    first.mkdir(parents=True)
    own.write_text("3:cpu:/x\n9:memory:/job\n")
    (first / "memory.limit_in_bytes").write_text(f"{3 * GIB}")
    (first / "memory.usage_in_bytes").write_text(f"{GIB}")
    (first / "memory.stat").write_text("total_inactive_file 0\n")
    assert min(memory._cgroup_rooms(tmp_path, own)) == 2 * GIB
    assert 2**26 < memory.available_memory() < 2**44


@pytest.mark.parametrize(
    ("accelerator", "cuda", "bf16", "name"),
    [
        ("auto", True, True, "bf16-mixed"),
        ("gpu", True, False, "32-true"),
        ("cpu", True, True, "32-true"),
        ("auto", False, False, "32-true"),
    ],
)
def test_the_arithmetic_is_the_best_of_the_device(monkeypatch, accelerator, cuda, bf16, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert precision(compose(overrides=[f"trainer.accelerator={accelerator}"]).trainer) == name
    assert precision(compose(overrides=["trainer.precision=16"]).trainer) == "16-mixed"


@pytest.mark.parametrize("name", ["bf16-true", "16-true", "64-true", "64"])
def test_arithmetic_in_which_nothing_is_learnt_is_refused(name):
    trainer = compose(overrides=[f"trainer.precision={name}"]).trainer
    with pytest.raises(ConfigError, match="is for evaluation only: .* training takes 32-true, bf16-mixed, 16-mixed"):
        check_precision(trainer, GPU)
    check_precision(trainer, GPU, training=False)
    with pytest.raises(ConfigError, match="is for evaluation only"):
        train.main([*QUICK, f"trainer.precision={name}"])
    with pytest.raises(ConfigError, match="16-mixed needs a GPU"):
        check_precision(compose(overrides=["trainer.precision=16-mixed"]).trainer, CPU)


def test_a_number_that_does_not_fit_is_refused_before_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: memory.BASE + 120e6)
    monkeypatch.setattr(searching, "search", lambda *_: pytest.fail("the search began"))
    command = [*QUICK, f"run.dir={tmp_path / 'r'}", "trainer.accumulate=1"]
    for flags in ([], ["--dry-run"]):
        with pytest.raises(NoMemoryError, match=r"accumulate=1: 64 images .* trainer\.accumulate=\d+ \(the same"):
            full.main([*command, *flags])
    (tmp_path / "r" / "summary.json").write_text('{"top1": 1}')  # one that is finished needs no memory
    assert full.main(command) == {"top1": 1}


@pytest.mark.nightly
def test_auto_trains_and_a_checkpoint_keeps_its_number(tmp_path, smallest, monkeypatch, digits_in_folders):
    room = room_for(4, smallest)
    monkeypatch.setattr(memory, "_found", {})
    monkeypatch.setattr(memory, "available_memory", lambda: room)
    images = ["data=folder", f"data.root={digits_in_folders(52, 20)}", "data.img_size=32", "data.workers=0"]
    settings = [*images, "data.limit=32", "recipe.batch_size=8"]
    command = [*QUICK, *settings, f"genotype={smallest}", f"run.dir={tmp_path / 'r'}"]
    train.main(command)
    run = RunFolder(tmp_path / "r", "")
    assert read(run.last)["accumulate"] == 2
    assert "batch: 8 = 1 cpu devices x 4 x 2 accumulated, 32-true" in (run.path / "log.txt").read_text()
    run.summary.unlink()
    monkeypatch.setattr(memory, "available_memory", lambda: 2**40)
    monkeypatch.setattr(memory, "_found", {})
    train.main(command)
    assert "trainer.accumulate=auto: 2, as in the checkpoint" in (run.path / "log.txt").read_text()
    assert read(run.last)["accumulate"] == 2


def room_for(images, genotype):
    """Bytes that just suffice."""
    return Trial(compose("S0", True, ["trainer.accelerator=cpu"]), Genotype.load(genotype), CPU, 1, 1).needed(images)


@pytest.mark.parametrize(
    ("before", "world", "least", "synced", "expected"),
    [
        ((2, 4), 4, 1, False, 2),
        ((1, 8), 1, 1, False, 8),
        ((1, 8), 1, 16, False, 16),
        ((8, 1), 4, 1, False, 2),
        ((1, 3), 2, 1, False, 1),
        ((4, 1), 8, 1, False, 1),
        ((1, 2), 1, 1, True, 1),
        ((4, 1), 8, 1, True, 4),
    ],
)
def test_the_images_of_a_norm_stay_on_another_number_of_devices(before, world, least, synced, expected):
    class Machine:
        world_size, accumulate_grad_batches, datamodule = world, 0, type("Data", (), {})()

    trainer, callback = Machine(), Accumulation(least, 1024, synced)
    callback.setup(trainer, None, "fit")
    callback.on_load_checkpoint(trainer, None, {"accumulate": before[0], "processes": before[1]})
    assert trainer.accumulate_grad_batches == trainer.datamodule.accumulate == expected


RANKS = """
import os, sys
from pipelines import train
from pipelines.runtime import memory

rooms = [float(room) for room in sys.argv[1:3]]
memory.available_memory = lambda: 2 * rooms[int(os.environ["RANK"])]
train.main(sys.argv[3:])
"""


@pytest.mark.nightly
def test_all_ranks_take_what_the_one_with_the_least_memory_needs(tmp_path, smallest, warm, digits_in_folders):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    rooms = [room_for(4, smallest), room_for(2, smallest)]
    images = ["data=folder", f"data.root={digits_in_folders(52, 20)}", "data.img_size=32", "data.workers=0"]
    settings = [*QUICK, *images, "data.limit=32", "recipe.batch_size=16"]
    settings += [f"genotype={smallest}", f"run.dir={tmp_path / 'r'}"]
    said = [rank.finish() for rank in warm.start_ranks(2, [script, *rooms, *settings])]
    assert "trainer.accumulate=auto: 2 batches of 4 images" in said[0]  # what rank 0 alone would take
    assert "batch: 16 = 2 cpu devices x 2 x 4 accumulated" in said[0]
    assert read(tmp_path / "r" / "checkpoints" / "last.ckpt")["accumulate"] == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_memory_that_runs_out_later_is_said_in_the_same_words(tmp_path, smallest, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(ESFormerModule, "training_step", fails)
    with pytest.raises(NoMemoryError, match="64 images at a time; go on with trainer.accumulate=2, the same training"):
        train.main([*QUICK, f"genotype={smallest}", f"run.dir={tmp_path / 'r'}"])
