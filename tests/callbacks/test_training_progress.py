"""What a person is told while a training runs."""

import io
import logging
import re
from types import SimpleNamespace

import pytest
from linear import BATCH, At, fit
from rich.console import Console

from callbacks import progress
from callbacks.progress import EpochLines, TrainingBar
from callbacks.speed import Speed
from esformer import throttle


def lines_of(caplog, callbacks, **how):
    with caplog.at_level(logging.INFO, "esformer"):
        fit(callbacks, **how)
    lines = [record.getMessage() for record in caplog.records if record.name == "esformer"]
    caplog.clear()
    return lines


def test_a_line_an_epoch_and_lines_within_long_ones(caplog):
    speed = Speed(BATCH, log_every=2)
    lines = lines_of(caplog, [speed, EpochLines(speed)])
    pattern = (
        r"epoch (\d) of 3: train/loss \d\.\d{4}, val/loss \d\.\d{4}, val/top1 0\.\d{4}, val/ema_top1 0\.\d{4}; "
        r"[\d,]+ images/s(, \d+ s left)?$"
    )
    assert [re.match(pattern, line)[1] for line in lines] == ["1", "2", "3"]
    assert "left" in lines[0]
    assert "left" not in lines[2]

    lines = lines_of(caplog, [speed, EpochLines(speed, every=0)], epochs=1)
    within = [
        re.match(r"epoch 1 of 1, step (\d+) of 10: loss \d\.\d{4}(, [\d,]+ images/s)?", line) for line in lines[:-1]
    ]
    assert [match[1] for match in within] == [str(step) for step in range(1, 11)]
    assert all(match[2] for match in within[1:])


def test_a_resumed_run_says_where_it_goes_on(caplog, tmp_path):
    speed, checkpoint = Speed(BATCH, log_every=2), tmp_path / "c.ckpt"
    fit([At(13, lambda trainer: trainer.save_checkpoint(checkpoint))])
    lines = lines_of(caplog, [speed, EpochLines(speed, every=0)], ckpt_path=checkpoint)
    assert lines[0] == "training: goes on after epoch 2 of 3, step 3 of 10"
    assert lines[1].startswith("epoch 2 of 3, step 4 of 10: loss ")
    assert lines[-1].startswith("epoch 3 of 3: ")


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 100 columns; every look of the bar as text."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(progress, "get_console", lambda: console)
    monkeypatch.setattr(throttle, "time", SimpleNamespace(monotonic=iter(range(10**6)).__next__))
    looks = []
    draw = TrainingBar._draw

    def watch(self, *args):
        draw(self, *args)
        with Console(file=io.StringIO(), width=100) as paper, paper.capture() as capture:
            paper.print(self._bar.get_renderable())
        looks.append(capture.get().rstrip("\n"))

    monkeypatch.setattr(TrainingBar, "_draw", watch)
    return looks


def test_the_bar_tells_epoch_step_loss_accuracy_speed_and_time_left(screen):
    speed = Speed(BATCH, log_every=2)
    bar = TrainingBar(speed)
    fit([speed, bar], validate=True)
    assert bar._bar is None  # the terminal is given back
    assert not any("\n" in look or "…" in look for look in screen)  # one line, and all of it
    pattern = r"epoch 2/3 \S+ +5/10 loss \d\.\d{3}  top-1 0\.\d{3} / 0\.\d{3}  [\d,]+ images/s  \d+ s left *$"
    assert sum(bool(re.match(pattern, look)) for look in screen) == 1
    validations = [re.match(r"validation \S* +(\d)/2 ", look) for look in screen]
    assert [match[1] for match in validations if match] == ["0", "1", "2"] * 4
    epochs = [re.match(r"epoch (\d)/3 \S* +(\d+)/10", look) for look in screen]
    steps = [(int(match[1]), int(match[2])) for match in epochs if match]
    assert steps == sorted(steps)
    assert steps[0] == (1, 0)
    assert steps[-1] == (3, 10)


def test_the_bar_goes_on_where_a_resumed_run_does(screen, tmp_path):
    checkpoint = tmp_path / "c.ckpt"
    fit([At(13, lambda trainer: trainer.save_checkpoint(checkpoint))])
    speed = Speed(BATCH)
    fit([speed, TrainingBar(speed)], ckpt_path=checkpoint)
    assert re.match(r"epoch 2/3 \S+ +4/10 ", next(look for look in screen if " loss " in look))


def test_a_failure_gives_the_terminal_back(screen):
    speed = Speed(BATCH)
    bar = TrainingBar(speed)

    def fail(trainer):
        raise KeyError("step 3")

    with pytest.raises(KeyError):
        fit([speed, bar, At(3, fail)])
    assert screen
    assert bar._bar is None
