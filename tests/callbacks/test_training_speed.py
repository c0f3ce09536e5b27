"""How fast a training goes, on a clock that the test moves."""

from types import SimpleNamespace

import pytest
from lightning import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.fetchers import _DataFetcher
from linear import BATCH, At, fit

from callbacks import speed as module
from callbacks.speed import Speed, Waiting


class Points(Logger):
    """Keeps what it is told."""

    name = version = "points"

    def __init__(self):
        super().__init__()
        self.points = []

    def log_metrics(self, metrics, step=None):
        self.points.append((step, dict(metrics)))

    def log_hyperparams(self, *_):
        pass

    def of(self, name):
        return {step: values[name] for step, values in self.points if name in values}


class Costs(Callback):
    """Moves the clock: what a batch, a validation and a checkpoint take; the first batch of all takes long."""

    def __init__(self, clock):
        self.clock, self.batches = clock, 0

    def on_train_batch_start(self, *_):
        self.batches += 1
        self.clock.now += 100 if self.batches == 1 else 0.5

    def on_validation_batch_end(self, *_):
        self.clock.now += 15  # two batches

    def on_save_checkpoint(self, *_):
        self.clock.now += 1000


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_steps_are_measured_without_validations_checkpoints_and_the_first(clock, tmp_path):
    points, speed = Points(), Speed(BATCH, log_every=2)
    save = At(13, lambda trainer: trainer.save_checkpoint(tmp_path / "c.ckpt"))
    fit([Costs(clock), speed, save], loggers=[points])
    assert list(points.of("lr")) == list(range(1, 30, 2))
    assert set(points.of("train/step_seconds").values()) == {0.5}
    assert set(points.of("train/images_per_second").values()) == {BATCH / 0.5}
    assert set(points.of("train/images_per_second")) == set(range(1, 30, 2))  # also where one step of two is left out
    left = points.of("train/hours_left")
    assert left[3] * 3600 == pytest.approx(26 * 0.5)  # no validation was seen yet
    assert left[11] * 3600 == pytest.approx(18 * 0.5 + 2 * 30)
    assert left[29] * 3600 == pytest.approx(30)  # one more validation
    assert speed.seconds_left == 0


def test_a_validation_within_an_epoch_is_no_step(clock):
    points = Points()
    fit([Costs(clock), Speed(BATCH, log_every=2)], loggers=[points], val_check_interval=3)
    assert set(points.of("train/step_seconds").values()) == {0.5}


def test_the_learning_rate_is_that_of_the_step(clock):
    points = Points()
    fit([Speed(BATCH, log_every=10)], loggers=[points])
    rates = points.of("lr")
    assert rates == {step: pytest.approx(0.05 * (1 - 0.9 * step / 30)) for step in (9, 19, 29)}


def test_batches_that_accumulate_are_one_step(clock):
    points, speed = Points(), Speed(BATCH, log_every=5)
    fit([Costs(clock), speed], loggers=[points], accumulate=4, epochs=2)
    assert points.of("train/step_seconds") == {4: 2.0, 9: 2.0, 14: 2.0, 19: 2.0}
    assert speed.images_per_second == BATCH / 2
    assert speed.steps_per_epoch == 10


def test_one_step_an_epoch_is_measured_too(clock):
    points = Points()
    fit([Costs(clock), Speed(BATCH, log_every=1)], loggers=[points], limit_train_batches=1, epochs=4)
    assert points.of("train/step_seconds") == {1: 0.5, 2: 0.5, 3: 0.5}
    assert points.of("train/hours_left")[1] * 3600 == pytest.approx(2 * 0.5 + 3 * 30)


@pytest.mark.parametrize(("slow", "share"), [(0.0, 0.0), (0.5, 0.5), (1.5, 0.75)])
def test_the_share_of_waiting_for_images(clock, caplog, slow, share, monkeypatch):
    fetch = _DataFetcher.__next__

    def waits(fetcher):
        fetcher._start_profiler()
        clock.now += slow
        fetcher._stop_profiler()
        return fetch(fetcher)

    monkeypatch.setattr(_DataFetcher, "__next__", waits)
    monkeypatch.setattr(module, "SURE", 5)
    points, speed = Points(), Speed(BATCH, log_every=2)
    with caplog.at_level("WARNING", "esformer"):
        fit([Costs(clock), speed], loggers=[points], profiler=Waiting())
    assert points.of("train/waiting") == {step: pytest.approx(share) for step in range(1, 30, 2)}
    assert speed.waiting == pytest.approx(share) and speed.waited == pytest.approx(share)
    said = [record.getMessage() for record in caplog.records if "data.workers" in record.getMessage()]
    assert len(said) == (share > 0.2)  # once
    if said:
        assert f"waits for images {share:.0%}".replace("%", " %") in said[0]


def test_without_a_profiler_nothing_is_said_of_waiting(clock):
    points, speed = Points(), Speed(BATCH, log_every=2)
    fit([Costs(clock), speed], loggers=[points])
    assert speed.waiting is None and speed.waited is None and not points.of("train/waiting")
