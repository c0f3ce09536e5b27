"""Ablate: every method is guided by what it says, all is scored alike in the end, and nothing is done twice."""

import csv
import json
import shutil

import pytest

from configs.compose import compose, to_yaml
from configs.schema import ConfigError
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.guide import Guide
from esformer.model.cost import cost
from esformer.proxies import score
from esformer.search.journal import read
from esformer.search.ranking import Ranking, Scored
from esformer.space import SearchSpace
from pipelines import ablate
from pipelines.runtime import ablating, cli

METHODS = ["log_synflow", "sum", "decoupled", "random", "efficientformerv2"]
BOTH = {"entropic_score", "log_synflow"}
QUIET = ["--size", "S0", "--quick", "wandb.mode=disabled", "trainer.accelerator=cpu"]
TINY = [*QUIET, "search.img_size=33", "search.total=24", "search.start_length=4", "search.phase_length=6"]


def run(folder, *arguments, methods=METHODS, seeds=1):
    asked = [f"ablate.methods=[{','.join(methods)}]", f"ablate.seeds={seeds}"]
    return ablate.main([*TINY, f"run.dir={folder}", *asked, *arguments])


def train(folder, *arguments):
    recipe = ["recipe.warmup_epochs=0", "recipe.batch_size=512", *arguments]
    return run(folder, "ablate.train=true", *recipe, methods=["decoupled"])


@pytest.fixture(scope="module", autouse=True)
def _no_pictures_of_searches():
    with pytest.MonkeyPatch.context() as patch:  # they take longer than so short searches
        patch.setattr("callbacks.search.draw_search", lambda *args: None)
        patch.setattr("callbacks.search.draw_architecture", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation") / "run"
    return folder, run(folder)


@pytest.fixture
def copied(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    return tmp_path / "run"


def journal(folder, method, seed=0):
    return list(read(folder / "search" / f"{method}-{seed}" / "journal.jsonl"))


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_line_for_each_method_and_seed(done):
    folder, rows = done
    assert [(row["method"], row["seed"]) for row in rows] == [(method, 0) for method in METHODS]
    with (folder / "ablate.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    assert (folder / "ablate.png").stat().st_size > 10_000
    for row in rows:
        genotype = Genotype.load(folder / row["genotype"])
        price = cost(genotype, 32, 10)
        assert (row["params"], row["macs"]) == (price.params, price.macs)
        kinds = [block.ffn for block in genotype.blocks()]
        assert {kind: row[kind] for kind in ("ibn", "convnext", "bottleneck")} == {
            kind: kinds.count(kind) for kind in ("ibn", "convnext", "bottleneck")
        }
        assert row["evaluations"] == (0 if row["method"] == "efficientformerv2" else 24)


def test_the_scores_are_none_that_a_search_saw(done):
    folder, rows = done
    genotype = Genotype.load(folder / rows[1]["genotype"])
    assert {proxy: rows[1][proxy] for proxy in BOTH} == {proxy: score(proxy, genotype, seed=2**31) for proxy in BOTH}
    seen = next(line.scores for line in journal(folder, "sum") if line.genotype == genotype.to_dict())
    assert all(rows[1][proxy] != seen[proxy] for proxy in BOTH)


def test_every_method_is_guided_by_its_proxies(done):
    folder, _ = done
    guided = {
        method: {(line.phase.split()[0], frozenset(line.scores)) for line in journal(folder, method)}
        for method in METHODS[:-1]
    }
    entropic, synflow = frozenset({"entropic_score"}), frozenset({"log_synflow"})
    assert guided["log_synflow"] == {("multi-start", synflow), ("joint", synflow)}
    assert guided["sum"] == {("multi-start", frozenset(BOTH)), ("joint", frozenset(BOTH))}
    assert guided["decoupled"] == {("multi-start", entropic), ("topology", entropic), ("size", synflow)}
    assert guided["random"] == {("multi-start", frozenset(BOTH))}


def test_random_search_samples_and_takes_the_best_sum(done):
    lines = journal(done[0], "random")
    assert [line.origin for line in lines] == ["sample"] * 24
    guide = Guide.parse("+".join(BOTH), sum="largest")
    scored = [Scored(Genotype.from_dict(line.genotype), line.scores) for line in lines]
    assert Genotype.load(done[0] / "search/random-0/genotype.yaml") == max(scored, key=Ranking(guide, scored)).genotype


def test_the_reference_is_efficientformerv2_as_a_point_of_the_space(done):
    found = Genotype.load(done[0] / "search/efficientformerv2-0/genotype.yaml")
    assert found == Genotype.shipped("efficientformerv2_s0")
    assert found in SearchSpace.for_size("S0", extended=True)
    assert not (done[0] / "search/efficientformerv2-0/journal.jsonl").exists()


def planned(*argv):
    config, arguments = ablate.parse(argv)
    return config, ablating.entries_of(config, arguments, lambda m: ablating.guide_of(m, config.search.total))


def test_the_defaults_are_table_5_and_any_proxy_is_a_method():
    config, entries = planned("ablate.methods=[decoupled,naswot]", "seed=3", "ablate.seeds=2", "run.dir=x")
    assert (config.size, config.search.extended, config.budget.params) == ("S1", True, 6e6)
    assert {config.budget.macs, *(entry.config.budget.macs for entry in entries)} == {None}  # the paper's one limit
    assert planned("budget.macs=auto")[1][0].config.budget.macs == "auto"
    assert config.search.to_dict() == compose("S1", overrides=["search=evaluations"]).search.to_dict()
    assert planned()[0].ablate.methods == METHODS[:3]
    assert [entry.name for entry in entries] == ["decoupled-3", "naswot-3", "decoupled-4", "naswot-4"]
    assert {phase.proxies for phase in entries[1].config.search.phases()} == {("naswot",)}
    other, _ = planned("--size", "S0", "search.extended=false", "search.total=4000")
    assert (other.size, other.search.extended, other.search.total) == ("S0", False, 4000)


def test_the_command_that_is_kept_repeats_a_search():
    settings = ["--quick", "wandb.group=a b", "run.dir=x", "seed=3", "search.total=600"]
    for entry in planned(*settings, f"ablate.methods=[{','.join(METHODS)},'naswot - 0.5*meco']")[1]:
        assert to_yaml(cli.parse("", entry.arguments)) == to_yaml(entry.config)


def test_a_method_that_does_not_go_with_the_search_is_refused():
    with pytest.raises(
        ConfigError, match=r"^search.start_proxy: log\(naswot\) is the logarithm of a rank, so sum must"
    ):
        planned("ablate.methods=[log(naswot)]")


def test_what_is_finished_is_only_read(done, copied, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("done again")

    monkeypatch.setattr("esformer.search.stage.SearchStage.run", refuse)
    monkeypatch.setattr("pipelines.runtime.ablating.score", refuse)
    before = contents(copied / "search")
    assert run(copied) == done[1]
    assert contents(copied / "search") == before


@pytest.mark.nightly
def test_killed_anywhere_it_goes_on(done, copied):
    search = copied / "search"
    (search / "sum-0/summary.json").write_text("{")
    (search / "decoupled-0/genotype.yaml").unlink()
    cut = search / "log_synflow-0"
    (cut / "genotype.yaml").unlink()
    (cut / "summary.json").unlink()
    lines = (cut / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "journal.jsonl").write_bytes(b"".join(lines[:15]) + lines[15][:40])
    shutil.rmtree(search / "random-0")
    journals = {path: path.read_bytes() for path in search.glob("*/journal.jsonl") if path.parent != cut}
    rows = run(copied)
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in done[1]]
    assert (cut / "journal.jsonl").read_bytes().startswith(b"".join(lines[:15]))
    assert len(journal(copied, "log_synflow")) == 24
    assert {path: path.read_bytes() for path in journals} == journals


def test_more_seeds_and_methods_join_but_another_ablation_does_not(done, copied, capsys):
    before = contents(copied / "search" / "decoupled-0")
    rows = run(copied, methods=["decoupled", "parameters"], seeds=2)
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for seed in range(2) for method in ("decoupled", "parameters")
    ]
    assert rows[0] == done[1][2]
    assert contents(copied / "search" / "decoupled-0") == before
    printed = capsys.readouterr().out
    assert "| parameters | 2 " in printed
    assert "±" in printed
    with pytest.raises(ESFormerError, match="holds another run: search.total was 24.0, is 30.0; choose another"):
        run(copied, "search.total=30")


@pytest.mark.nightly
def test_what_was_found_is_trained_once(copied, monkeypatch):
    rows = train(copied, "recipe.epochs=1")
    assert 0 < rows[0]["top1"] <= 1 and 0 < rows[0]["ema_top1"] <= 1
    trained = copied / "training" / "decoupled-0"
    assert json.loads((trained / "summary.json").read_text())["top1"] == rows[0]["top1"]
    assert Genotype.load(trained / "genotype.yaml") == Genotype.load(copied / rows[0]["genotype"])
    monkeypatch.setattr("pipelines.runtime.training.train", lambda *args: pytest.fail("trained again"))
    assert train(copied, "recipe.epochs=1") == rows
    with pytest.raises(ESFormerError, match="decoupled-0 holds another run: recipe.epochs was 1, is 2"):
        train(copied, "recipe.epochs=2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ablate.methods=[magic]"], "ablate.methods: there is no method 'magic'; there are decoupled, sum, random"),
        (["ablate.methods=[log_synflow+sum]"], "there is no method 'log_synflow+sum'"),
        (["ablate.methods=[]"], "ablate.methods is empty"),
        (["ablate.seeds=0"], "ablate.seeds is 0; it must be at least 1"),
        (["seed=2147483648"], "seeds must stay below 2147483648"),
        (["budget.params=1e5"], "no genotype of space S0-extended fits a budget of 100,000 params"),
        (["ablate.train=true", "data=imagenet"], "no images for data=imagenet"),
        (["ablate.train=true", "recipe.auto_augment=foo"], "recipe.auto_augment=foo is no augmentation"),
        (["genotype=mine.yaml"], "genotype is a setting of pipelines.train"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("IMAGENET", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: ablate.main([*TINY, f"run.dir={tmp_path / 'run'}", *arguments]))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
