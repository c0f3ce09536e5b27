"""Loggers beside W&B: what they hold is read back with their own tools."""

import csv

import pytest
from test_tracking import names_on_the_page

from configs.compose import compose
from configs.schema import ConfigError
from esformer.errors import STOPPED
from esformer.genotype import Genotype
from pipelines import full
from pipelines.runtime.lineage import send_checkpoints
from pipelines.runtime.loggers import finish, open_loggers
from pipelines.runtime.run_folder import RunFolder
from pipelines.runtime.tracking import log_genotype

SHORT = ["--quick", "search.total=60", "search.start_length=10", "search.phase_length=10", "search.seeds=1"]
SHORT += ["search.img_size=33", "data.limit=128", "recipe.epochs=1", "recipe.batch_size=64", "recipe.warmup_epochs=0"]
SHORT += ["trainer.accelerator=cpu", "trainer.log_every=1"]


def start(folder, *settings):
    config = compose("S0", True, [f"run.dir={folder}", *settings])
    run = RunFolder.of("full", config, []).open(config)
    return run, open_loggers(config, run)


def events(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


@pytest.mark.nightly
def test_tensorboard_holds_every_metric_of_both_stages(tmp_path):
    pytest.importorskip("tensorboard")
    full.main([*SHORT, "logger=tensorboard", f"run.dir={tmp_path / 'run'}"])
    found = events(tmp_path / "run/tensorboard")
    tags = found.Tags()
    named = names_on_the_page("entropic_score", "log_synflow")
    named = {name: only for name, only in named.items() if name not in ("trainer/global_step", "search/evaluation")}
    assert {name for name, only in named.items() if not only} <= {*tags["scalars"], *tags["images"]}
    assert set(tags["scalars"]) <= {*named, "search/evaluation", "epoch"}
    assert [event.step for event in found.Scalars("train/loss")] == [0, 1]
    assert found.Scalars("search/params")[-1].step == 60
    assert {"search/trajectory", "search/genotype"} <= set(tags["images"])
    text = found.Tensors("genotype/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert Genotype.load(tmp_path / "run/genotype.yaml").stages[0][0].ffn in text
    assert not (tmp_path / "run/wandb").exists()


def test_sessions_of_tensorboard_lie_together(tmp_path):
    pytest.importorskip("tensorboard")
    run, made = start(tmp_path / "run", "logger=tensorboard")
    made[0].log_metrics({"train/loss": 2.0}, step=3)
    finish(made, STOPPED)
    with run:
        pass
    _, made = start(tmp_path / "run", "logger=tensorboard")
    made[0].log_metrics({"train/loss": 1.0}, step=4)
    send_checkpoints(made, {"last": tmp_path})  # which only W&B takes
    finish(made, 0)
    assert [(e.step, e.value) for e in events(tmp_path / "run/tensorboard").Scalars("train/loss")] == [(3, 2), (4, 1)]


def test_csv_has_a_table_for_each_session(tmp_path):
    for number in (0, 1):
        run, made = start(tmp_path / "run", "logger=csv")
        made[0].log_metrics({"train/loss": 2.0}, step=number)
        log_genotype(made, Genotype.shipped("efficientformerv2_s0"), params=3)
        finish(made, STOPPED)
        with run:
            pass
        with (tmp_path / f"run/csv/version_{number}/metrics.csv").open() as file:
            assert [(row["step"], row["train/loss"]) for row in csv.DictReader(file)] == [(str(number), "2.0")]


def test_mlflow_keeps_one_run_and_its_failures_end_nothing(tmp_path, caplog, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ids = set()
    for step in (1, 2):
        run, made = start(tmp_path / "run", "logger=mlflow")
        ids.add(made[0].run_id)
        made[0].log_metrics({"train/loss": 2.0}, step=step)
        finish(made, STOPPED if step == 1 else 0)
        with run:
            pass
    (known,) = ids
    history = made[0].experiment.get_metric_history(known, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2), (2, 2)]
    assert made[0].experiment.get_run(known).info.status == "FINISHED"

    def fail(*_, **__):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(made[0].experiment, "log_batch", fail)
    for _ in range(5):
        made[0].log_metrics({"train/loss": 1.0}, step=3)
    said = [record.getMessage() for record in caplog.records if "MLflow" in record.getMessage()]
    assert len(said) == 3 and said[-1].endswith("; this run goes on without MLflow")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.runtime.loggers.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"logger={name} needs a package that is not here: pip install {name}"):
        start(tmp_path / "run", f"logger={name}")


def test_another_logger_is_no_other_run(tmp_path):
    for settings in ((), ("logger=csv",), ("logger=wandb", "wandb.mode=disabled")):
        run, made = start(tmp_path / "run", "wandb.mode=disabled", *settings)
        assert len(made) == ("logger=csv" in settings)
        finish(made, 1)
        with run:
            pass
    with pytest.raises(ConfigError, match="logger is 'aim'; it must be wandb, tensorboard, mlflow or csv"):
        compose("S0", overrides=["logger=aim"])
