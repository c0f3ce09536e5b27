"""What may be set, what is refused, and in which words."""

import tomllib
from pathlib import Path

import pytest

from configs.compose import compose, differences, to_yaml
from configs.explain import settings
from configs.schema import ConfigError
from esformer.model.cost import Budget
from esformer.recipe import Recipe
from esformer.search.schedule import Schedule
from pipelines.runtime.cli import parse

ROOT = Path(__file__).parents[2]


def test_every_setting_is_explained():
    assert [s.key for s in settings() if not s.explanation.endswith(".")] == []


@pytest.mark.parametrize(("size", "params", "clip"), [("S0", 3.5e6, 2.0), ("S1", 6e6, 2.0), ("S2", 12.5e6, 0.01)])
def test_a_size_sets_its_defaults(size, params, clip):
    config = compose(size)
    assert (config.size, config.budget.params, config.recipe.clip_grad) == (size, params, clip)
    assert (config.data.name, config.data.num_classes) == ("imagenet", 1000)
    assert config.search == compose(size, overrides=["search=naswot"]).search


def test_the_library_and_the_configuration_files_agree():
    paper = compose("S0", overrides=["search=paper"])
    assert (paper.recipe, paper.search.to_dict()) == (Recipe(), Schedule().to_dict())
    s2 = compose("S2", overrides=["search=paper-s2"]).search
    assert s2.to_dict() == Schedule(phase_length=6, total=55).to_dict()
    for size in ("S0", "S1", "S2"):
        assert compose(size).budget.params == Budget.for_size(size).params


def test_choices_come_before_single_settings():
    config = compose("S2", True, ["recipe.epochs=7", "data=cifar10", "recipe=quick", "budget.params=5e6", "seed=3"])
    assert (config.data.name, config.recipe.epochs, config.recipe.batch_size) == ("cifar10", 7, 64)
    assert (config.search.unit, config.budget.params, config.seed) == ("evaluations", 5e6, 3)
    assert compose("S0", overrides=["size=S1"]).budget.params == 6e6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("recipe.epoch=3", "there is no setting 'recipe.epoch'; did you mean 'recipe.epochs'"),
        ("epochs=3", "did you mean 'recipe.epochs'"),
        ("serach.total=3", "did you mean 'search.total'"),
        ("recipe.lr=fast", "recipe.lr is 'fast'; it must be a number"),
        ("recipe.lr=nan", "recipe.lr is nan; it must be above 0"),
        ("recipe.epochs=3", "recipe.warmup_epochs is 20; it must be from 0 to the 3 epochs"),
        ("search.unit=hours", "search.unit is 'hours'; it must be minutes or evaluations"),
        ("recipe.epochs", "is not a setting; write key=value"),
        ("data=mnist", "data=mnist: there is no such choice; there are cifar10, cifar100, digits, folder, imagenet"),
        ("data=../recipe/s2", "there is no such choice"),
        ("size=S9", "size is 'S9'; it must be one of S0, S1, S2"),
        ("wandb=off", "wandb is a section; set one of its fields, such as wandb.mode"),
        ("seed=1.5", "seed is '1.5'; it must be a whole number"),
        ("seed=-1", "seed is -1; it must be from 0 to 4294967295"),
        ("trainer.devices=0", "trainer.devices is 0; it must be at least 1"),
        ("trainer.accumulate=0", "trainer.accumulate is 0; it must be at least 1"),
        ("trainer.accumulate=many", "trainer.accumulate is 'many'; it must be a number of batches, or auto"),
        ("trainer.precision=bf32", "trainer.precision is 'bf32'; it must be one of auto, 32-true, bf16-mixed"),
        ("trainer.precision=transformer-engine", "trainer.precision is 'transformer-engine'; it must be one of"),
        ("trainer.strategy=ddp_spawn", "trainer.strategy is 'ddp_spawn'; it must be auto or ddp"),
        ("trainer.strategy=fsdp", "trainer.strategy is 'fsdp'; it must be auto or ddp"),
        ("data.workers=few", "data.workers is 'few'; it must be a number of processes, or auto"),
        ("trainer.save_minutes=0", "trainer.save_minutes is 0.0; it must be above 0"),
        ("trainer.max_skipped=-1", "trainer.max_skipped is -1; it must be at least 0"),
        ("data.workers=-1", "data.workers is -1; it must be at least 0"),
        ("data.img_size=16", "data.img_size is 16; it must be at least 32"),
        ("data.mean=[0,0]", "data.mean is [0.0, 0.0]; it must be 3 numbers"),
        ("data.interpolation=cubic", "data.interpolation is 'cubic'; it must be one of bicubic"),
        ("data.decoder=opencv", "data.decoder is 'opencv'; it must be one of torchvision, pil"),
        ("search.img_size=8", "search.img_size is 8; it must be at least 32"),
        ("wandb.mode=maybe", "wandb.mode is 'maybe'; it must be auto, online, offline or disabled"),
        ("recipe.epochs=0", "recipe.epochs is 0; it must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong, message):
    with pytest.raises(ConfigError) as caught:
        compose("S0", overrides=[wrong])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_may_be_left_to_the_machine():
    config = compose(overrides=["trainer.accumulate=auto", "data.workers=auto", "trainer.precision=bf16"])
    assert config.trainer.accumulate == "auto" and config.trainer.precision == "bf16-mixed"
    assert config.data.workers is None and 1 <= config.data.loaders <= 16
    config = compose(overrides=["trainer.accumulate=4", "data.workers=3"])
    assert (config.trainer.accumulate, config.data.workers, config.data.loaders) == (4, 3, 3)
    assert compose(overrides=["data.workers=null"]).data.workers is None


def test_print_config_prints_what_would_run(capsys):
    with pytest.raises(SystemExit):
        parse("", ["--size", "S2", "--quick", "--print-config", "recipe.epochs=3"])
    assert capsys.readouterr().out == to_yaml(compose("S2", True, ["recipe.epochs=3"]))


def test_differences_leave_out_where_and_on_what_a_run_runs():
    one = to_yaml(compose("S0", True))
    other = to_yaml(compose("S0", True, ["run.dir=x", "trainer.devices=4", "data.workers=3", "wandb.mode=offline"]))
    assert differences(one, other) == []
    changed = to_yaml(compose("S0", True, ["recipe.lr=0.1", "data.mean=[0,0,0]"]))
    assert [line.partition(" ")[0] for line in differences(one, changed)] == ["data.mean", "recipe.lr"]


def test_everything_that_is_needed_travels_in_a_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert project["packages"]["find"]["include"] == ["esformer*", "pipelines*", "callbacks*", "configs*"]
    folders = {
        path.parent for top in ("esformer", "pipelines", "callbacks", "configs") for path in (ROOT / top).rglob("*.py")
    }
    assert all((folder / "__init__.py").exists() for folder in folders)  # which is how packages are found
    for package in ("esformer", "configs"):
        there = set((ROOT / package).rglob("*.yaml"))
        travel = {path for pattern in project["package-data"][package] for path in (ROOT / package).glob(pattern)}
        assert there
        assert there <= travel


def test_a_search_guided_by_naswot_is_one_population():
    search = compose("S0", overrides=["search=naswot"]).search
    (phase,) = search.phases()
    assert (phase.genes, phase.proxies, phase.population, phase.tournament) == ("all", ("naswot",), 40, 8)
    assert (search.unit, phase.length) == ("evaluations", 1900)
    assert (search.batch, search.batch_size, search.img_size) == ("noise", 32, 48)


def test_a_run_of_before_there_was_a_batch_goes_on():
    new = to_yaml(compose("S0", overrides=["search.batch_size=32"]))
    old = "".join(
        line for line in new.splitlines(True) if "  batch: noise" not in line and line != "  batch_size: 32\n"
    )
    assert old != new and differences(old, new) == []
    assert differences(old, to_yaml(compose("S0", overrides=["search.batch=data"]))) == [
        "search.batch was noise, is data"
    ]


@pytest.mark.parametrize("wrong", ["search.batch=photos", "search.batch_size=1"])
def test_a_batch_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"search\.batch(_size)? is .*; it must be"):
        compose("S0", overrides=[wrong])
