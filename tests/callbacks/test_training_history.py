"""What stays of a training on the disk, however often it was killed."""

import csv

import pytest
import torch
from linear import BATCH, At, fit
from PIL import Image

from callbacks.history import STEPS, History, read_steps
from callbacks.speed import Speed
from esformer.plots.training import draw_training


class Killed(Exception):
    pass


def callbacks(folder):
    folder.mkdir(exist_ok=True)
    speed = Speed(BATCH, log_every=2)
    return [speed, History(folder, speed, every=1e9)]


def without_clock(file):
    return [{name: row[name] for name in STEPS[:5]} for row in csv.DictReader(file.open())]


@pytest.mark.nightly
def test_a_killed_run_leaves_the_files_of_a_calm_one(tmp_path):
    calm, killed, checkpoint = tmp_path / "calm", tmp_path / "killed", tmp_path / "last.ckpt"
    fit(callbacks(calm))

    def die(trainer):
        raise Killed

    save = At(14, lambda trainer: trainer.save_checkpoint(checkpoint))
    with pytest.raises(Killed):
        fit([*callbacks(killed), save, At(17, die)])
    assert [row["step"] for row in read_steps(killed / "steps.csv")] == [2, 4, 6, 8, 10, 12, 14, 16]
    with (killed / "steps.csv").open("a") as file:
        file.write("18,1,0.")  # a kill within a write
    fit(callbacks(killed), ckpt_path=checkpoint)

    assert (killed / "metrics.csv").read_text() == (calm / "metrics.csv").read_text()
    assert without_clock(killed / "steps.csv") == without_clock(calm / "steps.csv")
    steps = read_steps(calm / "steps.csv")
    assert [row["step"] for row in steps] == list(range(2, 31, 2))
    assert [row["epoch"] for row in steps] == [0] * 5 + [1] * 5 + [2] * 5
    assert steps[-1]["loss"] < steps[0]["loss"] < 3
    assert all(row["images_per_second"] > 0 and row["seconds"] > 0 and row["grad_norm"] > 0 for row in steps)
    assert [steps[0]["lr"], steps[-1]["lr"]] == pytest.approx([0.05 * (1 - 0.9 / 30), 0.05 * (1 - 0.9 * 29 / 30)])


def test_metrics_hold_every_epoch_and_nothing_of_the_clock(tmp_path):
    fit(callbacks(tmp_path))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    names = ["train/loss", "val/loss", "val/top1", "val/ema_top1"]
    assert sorted(rows[0]) == sorted(["epoch", "step", "lr", *names])
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert float(rows[-1]["val/top1"]) > 0.8


def test_a_checkpoint_does_not_grow_with_the_steps(tmp_path):
    sizes = []
    for log_every in (1, 10):
        speed = Speed(BATCH, log_every)
        trainer = fit([speed, History(tmp_path, speed)], log_every=log_every)
        trainer.save_checkpoint(tmp_path / "c.ckpt")
        state = torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]
        sizes.append(len(str(state)))
    assert sizes[0] == sizes[1]


def test_what_is_not_a_row_is_left_out(tmp_path):
    file = tmp_path / "steps.csv"
    assert read_steps(file) == []
    file.write_text(
        "step,epoch,loss,lr,grad_norm,images_per_second,seconds\n2,0,1.5,0.1,,,\n\nx,0,1\n4,0,nan,1,1,1,1,9\n6,0,1."
    )
    assert read_steps(file) == [{"step": 2, "epoch": 0, "loss": 1.5, "lr": 0.1}]


@pytest.mark.parametrize("fine", [True, False])
def test_the_picture_shows_what_there_is(tmp_path, fine):
    epochs = [
        {"epoch": i, "step": 10 * (i + 1), "lr": 0.1 / (i + 1), "train/loss": 2 / (i + 1), "val/top1": i / 5}
        for i in range(5)
    ]
    epochs = [{**row, "val/ema_top1": row["val/top1"] / 2} for row in epochs]
    steps = [
        {"step": i, "epoch": i // 10, "loss": 2 / i, "lr": 0.1, "grad_norm": 10.0 ** -(i % 3)} for i in range(1, 51)
    ]
    draw_training(epochs, tmp_path / "all.png", steps if fine else ())
    draw_training(epochs[:1], tmp_path / "one.png")
    for name in ("all", "one"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 4 * picture.height > 1200


def test_the_picture_draws_the_metrics_under_their_names(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.update(figure=figure))
    fit(callbacks(tmp_path))
    lines = {ax.get_title(): [len(line.get_xdata()) for line in ax.lines] for ax in drawn["figure"].axes}
    assert lines == {"loss": [15, 3, 3], "validation top-1": [3, 3], "learning rate": [15], "gradient norm": [15]}
    assert all(ax.lines[-1].get_xdata()[-1] == 3 for ax in drawn["figure"].axes)
