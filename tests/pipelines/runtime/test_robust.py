"""What goes wrong on a cluster ends a training with a sentence and soon, and costs it nothing that it had."""

import json
import time

import pytest
import torch

import esformer
from configs.compose import compose
from configs.schema import ConfigError
from esformer.checkpoint import read
from pipelines import train

QUICK = ["--quick", "wandb.mode=disabled", "trainer.accelerator=cpu", "recipe.batch_size=128", "data.limit=512"]


def wait_for(text, process):
    deadline = time.monotonic() + 120
    while text not in process.output:
        assert process.poll() is None, process.output
        assert time.monotonic() < deadline, process.output
        time.sleep(0.05)


def timeless(summary):
    return {name: value for name, value in summary.items() if name != "waiting_for_images"}


@pytest.mark.nightly
def test_a_damaged_checkpoint_costs_what_came_after_the_one_before(tmp_path, smallest, caplog):
    command = [*QUICK, f"genotype={smallest}", "recipe.epochs=2", f"run.dir={tmp_path / 'r'}"]
    calm = timeless(train.main(command))
    (tmp_path / "r" / "summary.json").unlink()
    last = tmp_path / "r" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:10_000])
    with caplog.at_level("WARNING", "esformer"):
        assert timeless(train.main(command)) == calm
    said = (tmp_path / "r" / "log.txt").read_text()
    assert "last.ckpt is damaged" in said
    assert "previous.ckpt" in said
    assert timeless(json.loads((tmp_path / "r" / "summary.json").read_text())) == calm


@pytest.mark.nightly
def test_a_rank_that_dies_ends_the_others(tmp_path, smallest, warm):
    command = ["pipelines.train", *QUICK, f"genotype={smallest}", "recipe.epochs=500", f"run.dir={tmp_path / 'r'}"]
    ranks = warm.start_ranks(2, command)
    wait_for("epoch 1 of 500: ", ranks[0])
    ranks[1].kill()
    assert ranks[0].wait(60) == 2, ranks[0].output
    assert ranks[0].output.rstrip().splitlines()[-1] == (
        "error: another process of this job is gone; see what it said. The same command goes on"
    )


@pytest.mark.nightly
def test_images_that_vanish_end_it(tmp_path, smallest, warm, digits_in_folders):
    root = digits_in_folders(200, 40)
    settings = ["data=folder", f"data.root={root}", "data.img_size=32", "data.workers=2", "recipe=quick"]
    settings += ["recipe.epochs=500", "recipe.batch_size=32", f"genotype={smallest}", f"run.dir={tmp_path / 'r'}"]
    process = warm.start(["pipelines.train", *settings, "trainer.accelerator=cpu", "wandb.mode=disabled"])
    wait_for("epoch 1 of 500: ", process)
    root.rename(tmp_path / "elsewhere")
    assert process.wait(60) == 2, process.output
    error = process.output.rstrip().splitlines()[-1]
    assert error.startswith(f"error: {root}/")
    assert error.endswith("(No such file or directory): are the images gone?")


@pytest.mark.nightly
@pytest.mark.parametrize("way", ["trainer.compile=true", "trainer.grad_checkpointing=true"])
def test_ways_to_save_time_and_memory_leave_ordinary_checkpoints(tmp_path, smallest, monkeypatch, way):
    networks, compile_ = [], torch.nn.Module.compile

    def eagerly(network):
        networks.append(network)
        compile_(network, backend="eager")  # inductor takes minutes

    monkeypatch.setattr(torch.nn.Module, "compile", eagerly)
    set_ = esformer.ESFormer.set_grad_checkpointing
    monkeypatch.setattr(
        esformer.ESFormer, "set_grad_checkpointing", lambda network, *on: (networks.append(network), set_(network, *on))
    )
    settings = [way, "trainer.precision=bf16-mixed", "recipe.drop_path=0.1", "recipe.epochs=1"]
    settings += ["data.limit=64", "recipe.batch_size=32"]  # bfloat16 is slow on many CPUs
    summary = train.main([*QUICK, *settings, f"genotype={smallest}", f"run.dir={tmp_path / 'r'}"])
    assert {type(network) for network in networks} == {esformer.ESFormer}
    checkpoint = read(summary["checkpoint"])
    for part in ("state_dict", "state_dict_ema"):
        assert all("_orig_mod" not in name and "module." not in name for name in checkpoint[part])
        assert all(value.dtype != torch.bfloat16 for value in checkpoint[part].values())
    assert esformer.load(summary["checkpoint"])(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_those_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match=r"trainer\.compile and grad_checkpointing are both true"):
        compose("S0", overrides=["trainer.compile=true", "trainer.grad_checkpointing=true"])
