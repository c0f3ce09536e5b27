"""A training that is stopped anywhere, and goes on, ends as the undisturbed one does."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from callbacks import checkpoints
from callbacks.checkpoints import GO_ON, SAVE, STOP, AtomicCheckpointIO, Checkpoints
from esformer.checkpoint import CheckpointError, read
from esformer.errors import STOPPED
from esformer.files import FileError
from pipelines import train

TINY = ["--quick", "wandb.mode=disabled", "trainer.accelerator=cpu", "genotype=efficientformerv2_s0", "recipe.epochs=2"]
TINY += ["recipe.batch_size=128", "data.limit=512", "recipe.random_erasing=0.3", "recipe.drop_path=0.2"]


def run(folder, *settings):
    return train.main([*TINY, f"run.dir={folder}", *settings])


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm") / "run"
    return folder, run(folder)


@pytest.fixture
def orders(monkeypatch):
    """What to do at moments of a training, once each: (epoch, "train" or "validation" or "end", batch) -> order."""
    orders = {}

    def agree(self, trainer):
        loop = trainer.fit_loop
        where = "validation" if trainer.validating else "train"
        batch = (loop.epoch_loop.val_loop if trainer.validating else loop.epoch_loop).batch_progress.current.ready - 1
        if loop.epoch_progress.current.processed > loop.epoch_progress.current.completed:
            where, batch = "end", 0
        return orders.pop((trainer.current_epoch, where, batch), GO_ON)

    monkeypatch.setattr(Checkpoints, "_agree", agree)
    return orders


def until_done(folder, *settings):
    """Start it again and again; gives how often it was stopped."""
    for stops in range(20):
        try:
            run(folder, *settings)
        except SystemExit as error:
            assert error.code == STOPPED
        else:
            return stops
    raise AssertionError("it never ends")


def assert_same(folder, calm):
    reference, summary = calm
    ours = json.loads((folder / "summary.json").read_text())
    assert [ours[name] for name in ("top1", "ema_top1")] == [summary[name] for name in ("top1", "ema_top1")]
    assert (folder / "metrics.csv").read_text() == (reference / "metrics.csv").read_text()
    ours, theirs = (read(path / "checkpoints" / "last.ckpt") for path in (folder, reference))
    for part in ("state_dict", "state_dict_ema"):
        for name, value in theirs[part].items():
            assert torch.equal(ours[part][name], value), name
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    for loops in ("epoch_loop.state_dict", "epoch_loop.batch_progress"):  # the steps under which loggers file things
        assert ours["loops"]["fit_loop"][loops] == theirs["loops"]["fit_loop"][loops]
    ours, theirs = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (ours, theirs))
    for number, state in theirs.items():
        assert all(torch.equal(ours[number][name], value) for name, value in state.items())


@pytest.mark.nightly
def test_stopped_at_every_kind_of_moment(tmp_path, calm, orders):
    orders |= dict.fromkeys(
        [
            (0, "train", 0),
            (0, "train", 2),
            (0, "train", 3),
            (0, "validation", 0),
            (0, "validation", 2),
            (0, "end", 0),
            (1, "train", 0),
            (1, "train", 1),
            (1, "validation", 1),
            (1, "end", 0),
        ],
        STOP,
    )
    assert until_done(tmp_path / "r") == 10
    assert not orders
    assert_same(tmp_path / "r", calm)


@pytest.mark.nightly
def test_a_checkpoint_from_within_a_validation_has_both_weights_in_their_places(tmp_path, orders):
    orders[0, "validation", 1] = STOP
    with pytest.raises(SystemExit):
        run(tmp_path / "r")
    within = read(tmp_path / "r" / "checkpoints" / "last.ckpt")
    orders[0, "end", 0] = STOP
    with pytest.raises(SystemExit):
        run(tmp_path / "r")
    after = read(tmp_path / "r" / "checkpoints" / "last.ckpt")
    for part in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(within[part][name], value) for name, value in after[part].items())
    assert not torch.equal(within["state_dict"]["model.head.weight"], within["state_dict_ema"]["head.weight"])


@pytest.mark.nightly
def test_killed_after_a_checkpoint_within_an_epoch(tmp_path, calm, orders, monkeypatch):
    orders[1, "train", 2] = SAVE
    save = Checkpoints._save

    def save_and_die(self, trainer):
        save(self, trainer)
        if trainer.global_step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "r", "data.workers=2")
    monkeypatch.setattr(Checkpoints, "_save", save)
    assert read(tmp_path / "r" / "checkpoints" / "last.ckpt")["global_step"] == 6
    run(tmp_path / "r", "data.workers=1")
    assert_same(tmp_path / "r", calm)


@pytest.mark.nightly
def test_the_best_one_is_there_when_the_last_one_says_so(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    def best_score(name):
        return read(tmp_path / "r" / "checkpoints" / name)["callbacks"]["Checkpoints"]["best_score"]

    monkeypatch.setattr(Checkpoints, "_save", die)  # a kill between the two
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "r")
    assert not (tmp_path / "r" / "checkpoints" / "last.ckpt").exists()
    assert best_score("best.ckpt") > 0
    monkeypatch.undo()
    run(tmp_path / "r")
    assert best_score("best.ckpt") == best_score("last.ckpt")


def test_processes_that_went_on_from_different_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "_highest", lambda number: max(number, 12 if number > 0 else -12)
    )  # another rank is at step 12
    with pytest.raises(CheckpointError, match="different checkpoints, of steps 10 and 12: do all nodes see the same"):
        Checkpoints(tmp_path, "val/top1", 1).on_train_start(SimpleNamespace(global_step=10), None)


@pytest.mark.nightly
def test_steps_stay_the_same_with_another_number_of_accumulated_batches(tmp_path, orders):
    orders[1, "train", 2] = STOP
    folder = tmp_path / "r"
    with pytest.raises(SystemExit):
        run(folder)
    assert read(folder / "checkpoints" / "last.ckpt")["global_step"] == 6
    orders[1, "train", 6] = STOP
    with pytest.raises(SystemExit):
        run(folder, "trainer.accumulate=2")
    assert not orders
    assert read(folder / "checkpoints" / "last.ckpt")["global_step"] == 7
    run(folder)
    checkpoint = read(folder / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 8
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 8


def test_a_whole_checkpoint_is_there_at_every_moment(tmp_path, monkeypatch):
    io, last, previous = AtomicCheckpointIO(), tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    seen = []

    def look(*_):
        there = [path for path in (last, previous) if path.exists()]
        seen.append([torch.load(path)["step"] for path in there])

    for name in ("replace", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real: (look(), real(*args), look()))
    for step in range(3):
        io.save_checkpoint({"step": step, "ballast": torch.zeros(1000)}, last)
    look()
    assert [steps[0] for steps in seen if steps] == sorted(steps[0] for steps in seen if steps)
    first = next(number for number, steps in enumerate(seen) if steps)
    assert all(seen[first:])
    assert seen[-1] == [2, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    io, last = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.part").write_bytes(b"of a training that was killed")
    io.save_checkpoint({"step": 1}, last)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="last.ckpt cannot be written: No space left on device"):
        io.save_checkpoint({"step": 2}, last)
    assert torch.load(last)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.nightly
def test_a_checkpoint_that_cannot_be_gone_on_from_is_passed_over(tmp_path, calm, capsys):
    shutil.copytree(calm[0], tmp_path / "r")
    (tmp_path / "r" / "summary.json").unlink()
    last = tmp_path / "r" / "checkpoints" / "last.ckpt"
    forged = read(last)
    forged["optimizer_states"][0]["state"][5]["exp_avg"] = torch.zeros(3)  # the fused step would die of it
    torch.save(forged, last)
    run(tmp_path / "r")
    out = " ".join(capsys.readouterr().out.split())
    assert "exp_avg is of shape (3,)" in out and "going on from" in out
    assert_same(tmp_path / "r", calm)
    for path in last.parent.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1000])
    (tmp_path / "r" / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="is damaged.*there is no whole checkpoint before it: remove"):
        run(tmp_path / "r")
