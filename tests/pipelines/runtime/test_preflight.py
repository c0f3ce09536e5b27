"""What a run is gets decided once: nobody asks again, and what a person asked for stays as it was."""

from collections import Counter
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from configs.compose import compose
from configs.schema import ConfigError
from esformer.data import datamodule
from esformer.search.stage import SearchStage
from pipelines import full
from pipelines.runtime import preflight as preflight_module
from pipelines.runtime import processes
from pipelines.runtime.preflight import preflight

TINY = ["--quick", "trainer.accelerator=cpu", "wandb.mode=disabled", "recipe.epochs=1", "data.limit=64"]
TINY += ["search.total=8", "search.start_length=2", "search.phase_length=2", "search.img_size=33", "data.workers=0"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config_of(root, *settings):
    images = ["data=folder", f"data.root={root}", "data.num_classes=null", "data.img_size=32", "recipe.batch_size=8"]
    return compose("S0", True, [*images, "trainer.accelerator=cpu", *settings])


def test_images_are_found_and_the_configuration_stays(digits_in_folders, tmp_path):
    config = config_of(digits_in_folders(40, 20))
    asked = deepcopy(config)
    plan = preflight("full", config, [])
    assert config == asked and config.data.num_classes is None
    assert plan.config.data.num_classes == 10 and plan.config.data.workers is not None
    assert (plan.processes.world_size, plan.device, plan.gpus, plan.precision) == (
        1,
        torch.device("cpu"),
        (),
        "32-true",
    )
    assert len(plan.images.train_set) == 20 and plan.stage.num_classes == 10
    assert plan.run.path.parts[0] == "runs" and not (tmp_path / "runs").exists()
    with pytest.raises(FrozenInstanceError):
        plan.config = config


@pytest.mark.parametrize(
    ("pipeline", "settings", "searches", "trains"),
    [
        ("full", [], True, True),
        ("search", [], True, False),
        ("search", ["search.finalists=2"], True, True),
        ("train", [], False, True),
        ("survey", [], True, True),  # a budget that nothing fits is refused there too
        ("ablate", [], True, False),
        ("ablate", ["ablate.train=true"], True, True),
        ("evaluate", [], False, False),
    ],
)
def test_what_a_pipeline_needs_is_checked_and_nothing_else(pipeline, settings, searches, trains):
    plan = preflight(pipeline, compose("S0", True, ["trainer.accelerator=cpu", *settings]), [])
    assert (plan.stage is not None, plan.trains, plan.device is not None) == (searches, trains, trains)


def test_a_search_alone_looks_at_no_image_unless_its_classes_are_to_be_counted(tmp_path):
    nowhere = config_of(tmp_path / "nowhere", "data.num_classes=7")
    assert preflight("search", nowhere, []).config.data == replace(nowhere.data, workers=nowhere.data.loaders)
    with pytest.raises(ConfigError, match="search.finalists=2 trains on images, but data.root is .*nowhere"):
        preflight("search", replace(nowhere, search=replace(nowhere.search, finalists=2)), [])
    with pytest.raises(ValueError, match="nowhere, which is not a folder"):
        preflight("search", config_of(tmp_path / "nowhere"), [])


def test_a_survey_is_one_process_whatever_else_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="each training of a survey has one device, but .* ask for 2;"):
        preflight("survey", config_of(tmp_path / "nowhere", "trainer.devices=2", "genotype=x"), [])


@pytest.mark.nightly
def test_the_whole_job_asks_once(tmp_path, monkeypatch):
    asked = Counter()

    def count(where, name):
        original = getattr(where, name)

        def counted(*args, **kwargs):
            asked[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(where, name, counted)

    for name in ("processes", "resolve", "visible_gpus"):
        count(preflight_module, name)
    count(processes, "_tasks")
    count(SearchStage, "__init__")
    count(datamodule, "build")
    full.main([*TINY, "recipe.batch_size=32", f"run.dir={tmp_path / 'run'}"])
    assert asked.pop("build") == 2  # the training and the validation images are opened once each
    assert asked == dict.fromkeys(("processes", "resolve", "visible_gpus", "_tasks", "__init__"), 1)
