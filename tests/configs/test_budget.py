"""The paper's MACs as a budget: what `auto` is, where people read it, and runs of before there was one."""

import pytest
import yaml

from configs.budget import budget
from configs.compose import compose, to_yaml
from configs.schema import ConfigError
from esformer.genotype import Genotype
from esformer.model.cost import Budget, cost, paper_macs
from esformer.search.journal import read_header
from pipelines import search
from pipelines.runtime.build import search_stage
from pipelines.runtime.cli import parse
from pipelines.runtime.run_folder import RunError, RunFolder

FAST = ["--quick", "wandb.mode=disabled", "search.total=8", "search.start_length=2", "search.phase_length=2"]
FAST += ["search.seeds=1"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("size", ["S0", "S1", "S2"])
def test_every_size_has_the_papers_parameters_and_macs(size):
    assert budget(compose(size)) == Budget(Budget.for_size(size).params, paper_macs(size))
    small = compose(size, overrides=["data=cifar10", "data.img_size=48"])
    assert budget(small).macs == paper_macs(size, 48, 10)
    assert search_stage(small).header()["budget"]["macs"] == paper_macs(size, 48, 10)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["budget.macs=null"], Budget(3_500_000)),
        (["budget.params=9e6", "budget.macs=2e9"], Budget(9_000_000, 2_000_000_000)),
        (["budget.params=null"], Budget(None, 410_000_000)),
        (["budget.latency_ms=20.5"], Budget(3_500_000, 410_000_000, 20.5)),
        (["data.num_classes=null"], Budget(3_500_000, 410_000_000)),  # until they are counted
    ],
)
def test_each_limit_is_set_on_its_own(settings, expected):
    assert budget(compose("S0", overrides=settings)) == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("budget.macs=many", "budget.macs is 'many'; it must be a number, auto or null"),
        ("budget.macs=0", "budget.macs is 0.0; it must be at least 1"),
        ("budget.macs=nan", "budget.macs is nan; it must be at least 1"),
        ("budget.params=auto", "budget.params is 'auto'; it must be a number or null"),
        ("budget.latency_ms=0", "budget.latency_ms is 0.0; it must be above 0"),
    ],
)
def test_a_budget_that_is_none_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        compose("S0", overrides=[wrong])


def test_people_read_what_auto_is_and_where_it_comes_from(capsys):
    with pytest.raises(SystemExit):
        parse("", ["--size", "S0", "--quick", "--print-config"])
    shown = capsys.readouterr().out
    said = (
        f"{paper_macs('S0', 32, 10):,} at 32 pixels and 10 classes; the paper's 0.41 G of S0 at 224 and 1000,"
        " scaled as efficientformerv2_s0"
    )
    assert f"  macs: auto # {said}\n" in shown
    assert yaml.safe_load(shown)["budget"]["macs"] == "auto"
    assert "1000 classes until they are counted" in to_yaml(compose("S0", overrides=["data=folder"]))
    assert " #" not in to_yaml(compose("S0", overrides=["budget.macs=4e8"]))
    assert search.main([*FAST, "--dry-run"])["budget_macs"] == said


def test_a_search_keeps_to_it_and_says_so(tmp_path):
    search.main([*FAST, "run.dir=r"])
    limit = paper_macs("S0", 32, 10)
    assert cost(Genotype.load("r/genotype.yaml"), 32, 10).macs <= limit
    assert read_header("r/journal.jsonl")["budget"]["macs"] == limit
    assert (
        f"budget.macs=auto: {limit:,} at 32 pixels and 10 classes; the paper's" in (tmp_path / "r/log.txt").read_text()
    )


@pytest.mark.nightly
def test_a_run_of_before_goes_on_without_a_limit_of_macs(tmp_path, capsys):
    whole = search.main([*FAST, "budget.macs=null", "run.dir=r"])
    for name in ("genotype.yaml", "summary.json"):
        (tmp_path / "r" / name).unlink()
    journal = tmp_path / "r" / "journal.jsonl"
    lines = journal.read_text().splitlines(True)
    journal.write_text("".join(lines[:5]))
    capsys.readouterr()
    again = search.main([*FAST, "run.dir=r"])
    assert "r began without a limit of MACs, and goes on so" in capsys.readouterr().out
    assert (again["macs"], again["search_score"]) == (whole["macs"], whole["search_score"])
    assert journal.read_text().splitlines(True)[:5] == lines[:5]
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["budget"]["macs"] is None


def opened(*settings):
    """A run of before there was `budget.macs=auto` goes on as it began."""
    config = compose("S0", True, settings)
    run = RunFolder.of("full", config, [])
    return run.open(run.as_begun(config))


def test_its_folder_is_found_by_the_same_command_and_told_apart_from_others(tmp_path):
    with opened() as run:
        assert run.path.name == "full-S0-digits-9c4cfa71"
    text = run.config.read_text()
    run.config.write_text("".join("  macs: null\n" if "  macs:" in line else line for line in text.splitlines(True)))
    before = run.config.read_text()
    with opened() as again:
        assert again.path == run.path and run.config.read_text() == before
    config = compose("S0", True)
    assert (run.as_begun(config).budget.macs, config.budget.macs) == (None, "auto")
    with opened("budget.macs=null") as unlimited:
        assert unlimited.path != run.path
    with pytest.raises(RunError, match="seed was 0, is 1; budget.macs was None, is auto; choose another run.dir"):
        opened("seed=1", f"run.dir={run.path}")


def test_a_limit_that_is_lifted_is_another_run():
    opened("run.dir=r").close()
    with pytest.raises(RunError, match="budget.macs was auto, is None; choose another run.dir"):
        opened("run.dir=r", "budget.macs=null")
