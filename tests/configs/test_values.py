"""What a person types for a setting is what the setting is, or is refused in a sentence."""

import argparse
import json
import os
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from configs.compose import compose, differences, to_yaml
from configs.schema import ConfigError
from esformer.errors import ESFormerError
from pipelines import correlate
from pipelines.runtime import cli
from pipelines.runtime.run_folder import RunError, RunFolder

TEXTS = ["2024_11_24", "0010", "12:30", "1e3", "true", "~", "s #1", "'q'", '"q"', "a=b", " a ", "${oc.env:HOME}", "${"]
TEXTS += [
    "???",
    "{a: b}",
    "[a]",
    "a,b",
    "&a b",
    "*a",
    "!!x y",
    "- a",
    "ünï",
    "@x",
    "%",
    "a: b",
    "Null",
    "0x1",
    "nan",
    "\t",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_as_it_was_typed_and_reads_back_equal(text):
    config = compose("S0", overrides=[f"wandb.group={text}", f"ablate.methods=[{json.dumps(text)}]"])
    assert (config.wandb.group, config.ablate.methods) == (text, [text])
    assert yaml.safe_load(to_yaml(config))["wandb"]["group"] == text
    assert differences(to_yaml(config), to_yaml(config)) == []


def test_only_null_is_nothing_and_the_home_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = compose("S0", overrides=["wandb.group=null", "run.dir=~", "data.root=~/x y", "genotype=a~"])
    assert (config.wandb.group, config.run.dir, config.data.root, config.genotype) == (
        *(None, "/home/me", "/home/me/x y", "a~"),
    )
    assert compose(overrides=["init=null"]).init is None
    assert compose(overrides=["init=~/w.ckpt"]).init == "/home/me/w.ckpt"
    assert cli.path("~/a b") == Path("/home/me/a b")
    table = ["--benchmark", "darts", "--table", "~/t", "--images", "~/i", "--out", "~/o"]
    options = correlate.parse(table)
    assert [str(p) for p in (options.table, options.images, options.out)] == [f"/home/me/{c}" for c in "tio"]


@pytest.mark.parametrize("raw", ["", "a\0b", "a\udcff", "\x1b[31m", "x" * 300, "y/" * 3000])
def test_no_path_is_what_no_file_can_be_called(raw):
    with pytest.raises(ConfigError, match="run.dir is "):
        compose("S0", overrides=[f"run.dir={raw}"])
    with pytest.raises(argparse.ArgumentTypeError):
        cli.path(raw)


def test_numbers_are_what_people_mean():
    for text, value in {"1e3": 1000, "1_000": 1000, "0x10": 16, " 30 ": 30, "+30": 30, "2.0e1": 20}.items():
        assert compose("S0", overrides=[f"data.limit={text}"]).data.limit == value
    for text, value in {"1e-3": 1e-3, ".5": 0.5, "1": 1.0, "1_0.5": 10.5}.items():
        assert compose("S0", overrides=[f"recipe.lr={text}"]).recipe.lr == value
    assert compose("S0", overrides=["data.limit=~"]).data.limit is None
    assert [compose("S0", overrides=[f"recipe.ema={word}"]).recipe.ema for word in ("no", "On", "1")] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("recipe.epochs=0010", "without zeros in front"),
        ("recipe.epochs=12:30", "a whole number"),
        ("recipe.epochs=1.5", "a whole number"),
        ("recipe.epochs=nan", "a whole number"),
        ("recipe.epochs=true", "a whole number"),
        ("recipe.epochs=", "is empty"),
        ("recipe.epochs=999999999999", "at most 1000000"),
        ("recipe.epochs=1e400", "beyond all bounds"),
        ("recipe.epochs=" + "9" * 5000, "beyond all bounds"),
        ("recipe.batch_size=99999999999", "at most 1048576"),
        ("recipe.ema=5", "true or false"),
        ("recipe.lr=1:30", "a number"),
        ("recipe.lr=1e309", "recipe.lr is inf"),
        ("seed=99999999999", "from 0 to 4294967295"),
        ("search.starts=999999999", "at most 1000"),
        ("search.in_flight=999999999", "at most 10000"),
        ("search.population=9999999999999", "at most 2147483648"),
        ("search.workers=999999", "at most 1024"),
        ("search.total=inf", "more than 10000 phases"),
        ("trainer.devices=999999", "at most 1024"),
        ("trainer.num_nodes=9999999", "at most 100000"),
        ("trainer.log_every=99999999999", "at most 2147483647"),
        ("ablate.seeds=999999999", "at most 10000"),
        ("budget.macs=inf", "budget.macs is inf"),
        ("data.mean=" + "[" * 3000, "nested too deeply"),
        ("data.mean=[&a 1,*a,*a]", "aliases"),
        ("data.mean=[1,2", "not plain YAML"),
        ("data.mean=[[0],0,0]", "must be a number"),
        ("data.mean=0", "must be a list"),
        ("data.mean=[.inf,0,0]", "data.mean is .*inf"),
        ("ablate.methods=sum", "must be a list"),
        ("ablate.methods=[[sum]]", "must be text"),
        ("data=" + "x" * 999, "no such choice"),
        ("data=\0", "no such choice"),
    ],
)
def test_what_nobody_can_mean_is_refused_in_a_short_line(wrong, says):
    with pytest.raises(ConfigError, match=says) as caught:
        compose("S0", overrides=["search=evaluations", wrong])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def opened(*settings):
    config = compose("S0", True, ["run.dir=r", *settings])
    return RunFolder.of("search", config, []).open(config)


def test_a_run_of_an_earlier_version_is_not_lost(tmp_path, monkeypatch):
    """Earlier versions took run.dir=2024_11_24 for 20241124, and ~ for a folder of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for typed, earlier in {"2024_11_24": "20241124", "1e3": "1000.0", "~/runs": "~/runs", "0010": "8"}.items():
        opened(f"run.dir={tmp_path / earlier}").close()
        with pytest.raises(RunError, match=f"{earlier}, which an earlier version took it for, holds a run: move it to"):
            opened(f"run.dir={typed}")
    (tmp_path / "20241124").rename(tmp_path / "2024_11_24")
    opened("run.dir=2024_11_24").close()


@pytest.mark.parametrize("kind", ["mkdir", "mkfifo", "symlink"])
@pytest.mark.parametrize("name", ["config.yaml", "journal.jsonl", "summary.json", "wandb_id", ".lock", "log.txt"])
def test_what_is_no_file_is_named_and_not_touched(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    opened().close()
    (tmp_path / "r" / name).unlink(missing_ok=True)
    if kind == "symlink":
        (tmp_path / "r" / name).symlink_to(tmp_path / "elsewhere")
    else:
        getattr(os, kind)(tmp_path / "r" / name)
    with pytest.raises(ESFormerError, match=f"r/{name} (is not a file|cannot be written)"):
        opened()
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_that_is_a_link_leaves_its_target_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "r" / ".lock").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(RunError, match="lock cannot be written"):
        opened()
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("content", ["&a [*a]", "a: " + "[" * 9000, "\0", "", "[1]", "1: 2", "a: 1\na: 1", "!!set {}"])
def test_a_damaged_config_is_one_sentence(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    opened().close()
    (tmp_path / "r" / "config.yaml").write_text(content)
    with pytest.raises(RunError, match="config.yaml is damaged: it .*; choose another run.dir"):
        opened()


@pytest.mark.parametrize(
    "content", ["", "[", "[]", "[" * 100_000, '{"a": NaN}', '{"a": ' + "[" * 500 + "]" * 500 + "}"]
)
def test_a_damaged_summary_is_as_good_as_unfinished(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with opened() as run:
        run.summary.write_text(content)
        assert run.finished() is None
        run.summary.write_text('{"[/b]": "[/x]", "n": 5}')  # no markup of Rich's
        assert run.finished() == {"[/b]": "[/x]", "n": 5}


def test_a_table_that_is_a_pipe_or_more_workers_than_any_machine_has_end_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for arguments, says in {
        ("--table", str(tmp_path / "pipe")): "neither a file nor a folder",
        ("--table", str(tmp_path), "--workers", "9999999"): "at most 1024",
    }.items():
        with pytest.raises(ESFormerError, match=says):
            correlate.main(["--benchmark", "nats-tss", *arguments])


def test_a_line_of_scores_that_is_none_is_named_and_a_torn_one_of_megabytes_is_cut(tmp_path):
    from pipelines.runtime.scoring import Score, ScoreFile

    file, good = tmp_path / "scores.csv", b"architecture,proxy,score,seconds,error\na,sed,1.5,0.1,\n"
    for bad in (
        b"b,sed,nan,1,\n",
        b"b,sed,1,inf,\n",
        b'"b,sed,1,1,\n',
        b"\xff,sed,1,1,\n",
        b"x" * 200_000 + b"\n",
        b"\0\n",
    ):
        file.write_bytes(good + bad + good)
        with pytest.raises(ESFormerError, match="line 3 is"):
            ScoreFile(file)
    file.write_bytes(good + b"y" * (3 << 20))
    with closing(ScoreFile(file)) as scores:
        assert scores.known == {("a", "sed"): Score("a", "sed", 1.5, 0.1, "")}
    assert file.read_bytes() == good


def test_where_nobody_has_a_home_it_is_asked_for(tmp_path, monkeypatch):
    """A container may run as a user id without an account."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    opened().close()
    for path in ("~", "~/runs"):
        with pytest.raises(ConfigError, match="run.dir is '~.*there is no home here; set HOME, or write the path"):
            compose(overrides=[f"run.dir={path}"])


def test_a_message_does_not_repeat_a_text_without_end():
    for key in ("trainer.strategy", "data.decoder", "wandb.project"):
        with pytest.raises(ConfigError) as error:
            compose(overrides=[f"{key}={'x' * 4000}"])
        assert len(str(error.value)) < 300 and "it has 4,000 characters, and may have at most 500" in str(error.value)
    assert compose(overrides=[f"data.root={'x/' * 2000}"]).data.root == "x/" * 2000
