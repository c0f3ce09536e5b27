"""Correlate: scored once and only once, whatever is killed; the same figures in any order; wrong inputs."""

import csv
import json
import os
import signal
import time
from contextlib import closing
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from esformer.benchmarks.base import Entry
from esformer.benchmarks.correlation import correlate as correlation
from esformer.engine import processes
from esformer.engine.executor import compute
from esformer.engine.start import executor
from esformer.errors import ESFormerError
from esformer.proxies import get, names
from pipelines import correlate
from pipelines.runtime import cli, correlating, scoring
from pipelines.runtime.run_folder import Folder
from pipelines.runtime.scoring import Job, Score, ScoreFile, Scorer, ScoringError, Task, read_batch

TABLE = {
    "1111111": 91.7,
    "1112111": 91.9,
    "1121211": 92.3,
    "2121112": 92.4,
    "1111222": 92.1,
    "2222222": 93.2,
}
COMMAND = ["--benchmark", "channel-bench-resnet", "--table", "table.csv"]
NETWORKLESS = ["--proxies", "sed"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, warm_workers):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("esformer.benchmarks.correlation.RESAMPLES", 20)
    lines = [f"{architecture},{accuracy},1" for architecture, accuracy in TABLE.items()]
    Path("table.csv").write_text("\n".join(["arch,test_acc_mean,params", *lines]) + "\n")


def images(folder, classes=("cat", "dog"), each=3, size=(40, 36)):
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = generator.integers(256, size=(*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def lines(folder):
    with (Path(folder) / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def figures(folder):
    """What a run found, without how long it took and by what command."""
    result = json.loads((Path(folder) / "result.json").read_text())
    del result["command"]
    for found in result["proxies"].values():
        del found["seconds"]
    return result


def wait_for_lines(process, folder, more_than):
    file, deadline = Path(folder) / "scores.csv", time.monotonic() + 60
    while not file.exists() or file.read_bytes().count(b"\n") <= more_than:
        assert process.poll() is None, process.output
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return file.read_bytes()


def test_everything_is_left_and_more_is_added(tmp_path):
    folder = tmp_path / "out"
    asked = [*COMMAND, "--out", str(folder), "--workers", "2"]
    result = correlate.main([*asked, "--proxies", "sed,macs", "--sample", "4"])
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (folder / "figure.png").stat().st_size > 10_000
    first = lines(folder)
    assert len(first) == 8

    shown = ["--images", str(images(tmp_path / "photos" / "train").parent), "--batch-size", "4"]
    correlate.main([*asked, "--proxies", "macs,naswot,sed", *shown])
    assert lines(folder)[:8] == first
    assert len({(row["architecture"], row["proxy"]) for row in lines(folder)}) == len(lines(folder)) == 18

    smaller = correlate.main([*asked, "--proxies", "sed,macs", "--sample", "4", "--workers", "1"])
    assert smaller["proxies"] == result["proxies"]
    assert len(lines(folder)) == 18
    assert smaller["proxies"]["sed"]["n"] == 4
    report = (folder / "report.md").read_text()
    assert report.startswith("# channel-bench-resnet, cifar10: 4 of 6 architectures\n")
    assert "| macs | 4 | 0 |" in report
    assert smaller["command"] in report

    assert set(yaml.safe_load((folder / "config.yaml").read_text())) == {"benchmark", "dataset", "table_sha256", "seed"}
    with pytest.raises(ESFormerError, match="seed was 0, is 1; choose another --out"):
        correlate.main([*asked, *NETWORKLESS, "--seed", "1"])
    with pytest.raises(ESFormerError, match="batch_size was 4, is 5; choose another --out"):
        correlate.main([*asked, "--proxies", "naswot", *shown[:2], "--batch-size", "5"])


@pytest.mark.nightly
def test_ranks_share_the_work(warm, tmp_path):
    asked = [*COMMAND, "--proxies", "entropic_score,sed"]
    correlate.main([*asked, "--out", "alone"])
    command = ["pipelines.correlate", *asked, "--out", "ranks"]
    first, other = warm.start_ranks(2, command, tmp_path)
    assert "6 architectures to score" in first.finish() and not other.finish()
    alone, ranks = (sorted(tuple(row.values())[:3] for row in lines(folder)) for folder in ("alone", "ranks"))
    assert ranks == alone
    first, other = warm.start_ranks(2, command, tmp_path)
    assert "0 architectures to score, 6 known" in first.finish() and not other.finish()


@pytest.mark.nightly
def test_stopped_on_the_way(warm, tmp_path):
    rows = [f"1111{''.join(digits)},9{i % 7},1\n" for i, digits in enumerate(product("123", "12", "12"))]
    Path("table.csv").write_text("arch,test_acc_mean,params\n" + "".join(rows))
    command = [*COMMAND, "--proxies", "entropic_score,sed"]
    correlate.main([*command, "--out", "calm", "--workers", "1"])
    lines_before = 0
    for sign, workers in (signal.SIGINT, "2"), (signal.SIGKILL, "1"):
        process = warm.start(["pipelines.correlate", *command, "--out", "stopped", "--workers", workers])
        wait_for_lines(process, "stopped", lines_before + 3)
        if sign == signal.SIGINT:
            os.killpg(process.pid, sign)  # a terminal's Ctrl-C reaches the workers too
        else:
            process.kill()
        process.wait(timeout=60)
        out = process.output
        assert "Traceback" not in out
        assert sign == signal.SIGKILL or out.splitlines()[-1] == "stopped; the same command goes on from here"
        before = Path("stopped/scores.csv").read_bytes()
        lines_before = before.count(b"\n")
    Path("stopped/scores.csv").write_bytes(before + b"1113122,entr")
    correlate.main([*command, "--out", "stopped", "--workers", "1"])
    assert Path("stopped/scores.csv").read_bytes().startswith(before)
    computed = [(row["architecture"], row["proxy"]) for row in lines("stopped")]
    assert len(set(computed)) == len(computed) == 24 > lines_before
    assert figures("stopped") == figures("calm")


@pytest.mark.nightly
def test_a_worker_that_is_killed_changes_nothing(monkeypatch, warm):
    started = []
    popen = lambda *args, **kwargs: started.append(warm.popen(*args, **kwargs)) or started[-1]  # noqa: E731
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=popen, DEVNULL=None))
    tasks = [Task(architecture, ("entropic_score", "log_synflow")) for architecture in TABLE]
    found = {}
    for workers in (1, 2):
        computing = executor(Scorer(Job("channel-bench-resnet", "cifar10")), workers)
        with closing(compute(computing, tasks, ahead=4)) as coming:
            scored = next(coming)
            if started:
                started[0].kill()
            scored += [score for scores in coming for score in scores]
        found[workers] = sorted((score.architecture, score.proxy, score.score) for score in scored)
    assert len(started) == 3
    assert found[1] == found[2]


def test_the_score_file(tmp_path):
    path = tmp_path / "scores.csv"
    kept = [Score("a,b", "sed", 1 / 3, 0.5), Score("c", "sed", None, 0.25, 'cannot, as "they" say')]
    with closing(ScoreFile(path)) as scores:
        for score in kept:
            scores.append(score)
            assert path.read_bytes().endswith(b"\n")  # on disk at once
    whole = path.read_bytes()
    for torn in (b"", b"d,sed,0.1", b'"d'):
        path.write_bytes(whole + torn)
        with closing(ScoreFile(path)) as scores:
            assert list(scores.known.values()) == kept
            assert scores.missing(["a,b", "d", "c"], ["sed", "macs"]) == [
                Task("a,b", ("macs",)),
                Task("d", ("sed", "macs")),
                Task("c", ("macs",)),
            ]
        assert path.read_bytes() == whole
    path.write_bytes(whole[:10])  # killed in the first line
    with closing(ScoreFile(path)) as scores:
        assert not scores.known
    for damaged, line in ((b"thesis\n", 1), (whole + b"d,sed,high,0.1,\n", 4), (whole + b"d,sed\n", 4)):
        path.write_bytes(damaged)
        with pytest.raises(ScoringError, match=f"scores.csv: line {line} is not a line of scores"):
            ScoreFile(path)
        assert path.read_bytes() == damaged


def test_the_same_figures_in_any_order_and_ties_as_ties(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(get("macs"), "higher_is_better", False, raising=False)
    entries = [Entry(architecture, accuracy) for architecture, accuracy in TABLE.items()]
    values = {
        "sed": [1, 2, 2, 7, 7, 7],
        "macs": [5, 4, 2, 2, 3, 1],
        "parameters": [3] * 6,
        "naswot": [1, 4, None, 2, 3, 5],
    }
    made = [
        Score(e.architecture, proxy, v, 0.5, "" if v is not None else "images all alike")
        for proxy, column in values.items()
        for e, v in zip(entries, column, strict=True)
    ]
    found, asked = [], ",".join([*values, "sed + parameters", "sed - 0.5*naswot"])
    for order in (made, made[::-1]):
        with closing(ScoreFile(tmp_path / f"{len(found)}.csv")) as scores:
            for score in order:
                scores.append(score)
            found.append(correlating.evaluate(entries, correlating.choose_guides(asked, tmp_path), scores, seed=0))
    (panels, statistics), (_, again) = found
    assert statistics == again
    accuracies = np.array(list(TABLE.values()))
    assert statistics["sed"]["spearman"] == correlation(accuracies, np.array(values["sed"])).spearman
    assert statistics["macs"]["selected"]["best"] == 93.2  # the fewest
    assert statistics["macs"]["spearman"] == correlation(accuracies, -np.array(values["macs"])).spearman > 0
    assert statistics["parameters"]["spearman"] is None
    assert (statistics["naswot"]["n"], statistics["naswot"]["unscored"]) == (5, 1)
    for name in ("n", "spearman", "partial", "decided", "selected"):  # what is the same for all adds nothing
        assert statistics["sed + parameters"][name] == statistics["sed"][name]
    assert statistics["sed + parameters"]["seconds"] == 1.0
    assert (statistics["sed - 0.5*naswot"]["n"], statistics["sed - 0.5*naswot"]["unscored"]) == (5, 1)
    ranks = np.array([1, 2, 4, 4, 4]) - 0.5 * np.array([1, 4, 2, 3, 5])
    assert statistics["sed - 0.5*naswot"]["spearman"] == correlation(np.delete(accuracies, 2), ranks).spearman

    result = {
        "benchmark": "b", "dataset": "d", "sample": 6, "architectures": 6, "command": "c", "seed": 0, "images": None,
        "source": "s", "best_of_sample": 93.2, "proxies": statistics, "fitted": [],
    }  # fmt: skip
    correlating.publish(tmp_path, result, panels)
    report = (tmp_path / "report.md").read_text()
    assert "3 tied: best 93.20 (rank 1), mean 92.57 (rank 2), worst 92.10 (rank 4)" in report
    assert "| parameters | 6 | 0 | constant | constant | none | 0.50 [0.50, 0.50] of 1 | 0.5 |" in report
    assert "Of macs a lower score promises more" in report
    assert "naswot could not score 1 of the sample: images all alike." in report
    assert "NaN" not in (tmp_path / "result.json").read_text()
    assert "3 tied" in capsys.readouterr().out


def test_a_batch_of_images(tmp_path):
    folder = images(tmp_path / "photos", each=5)
    batch = read_batch(folder, size=6, num_classes=10, img_size=16, seed=0)
    assert (batch.images.shape, batch.images.dtype, batch.labels.shape) == ((6, 3, 16, 16), np.float32, (6,))
    again, other = (read_batch(folder, 6, 10, 16, seed) for seed in (0, 1))
    assert (again.images == batch.images).all()
    assert (other.images != batch.images).any()
    assert other.digest == batch.digest
    assert len(np.unique(read_batch(folder, 10, 2, 8, 0).images, axis=0)) == 10  # none twice
    Image.new("RGB", (20, 20), (255, 0, 128)).save(tmp_path / "photos" / "cat" / "more.png")
    assert read_batch(folder, 6, 10, 16, 0).digest != batch.digest
    plain = images(tmp_path / "plain", classes=["one"], each=0)
    Image.new("RGB", (20, 30), (255, 0, 128)).save(plain / "one" / "0.png")
    pixel = read_batch(plain, 1, 10, 32, 0).images[0, :, 5, 7]
    assert pixel == pytest.approx(
        [(1 - 0.4914) / 0.2470, (0 - 0.4822) / 0.2435, (128 / 255 - 0.4465) / 0.2616], abs=1e-6
    )


def test_noise_in_place_of_images():
    batch = read_batch(scoring.NOISE, 6, num_classes=10, img_size=16, seed=0)
    assert (batch.images.shape, batch.images.dtype, batch.digest) == ((6, 3, 16, 16), np.float32, "noise")
    assert batch.labels.shape == (6,) and batch.labels.max() < 10
    assert (read_batch(scoring.NOISE, 6, 10, 16, seed=1).images != batch.images).all()


def test_a_guide_is_fitted_to_one_half_and_judged_on_the_other(tmp_path):
    generator = np.random.default_rng(0)
    known = {name: generator.normal(size=60) for name in ("sed", "meco", "zico")}
    params, macs = (generator.integers(10**6, 2 * 10**6, size=60) for _ in range(2))
    accuracies = 90 + params / 1e6 + known["sed"] - 0.5 * known["meco"]
    entries = [Entry(str(i), accuracies[i], int(params[i]), int(macs[i])) for i in range(60)]
    with closing(ScoreFile(tmp_path / "scores.csv")) as scores:
        for name, values in known.items():
            for entry, value in zip(entries, values, strict=True):
                scores.append(Score(entry.architecture, name, float(value), 0.1))
        guides = correlating.choose_guides("sed,meco,zico", tmp_path)
        fitted = correlating.fit_guides(entries, ["sed", "meco", "zico"], scores, 2, seed=0)
        panels, statistics = correlating.evaluate(entries, guides, scores, seed=0)
    assert [found["guide"].split(" ")[0] for found in fitted] == ["sed"] * 4
    of_two = [found for found in fitted if "- 0." in found["guide"] and "meco" in found["guide"]]
    assert len(of_two) == 2 and all(found["partial"] > 0.9 for found in of_two)
    assert all((found["fitted_to"], found["judged_on"]) == (30, 30) for found in fitted)
    result = {
        "benchmark": "b", "dataset": "d", "sample": 60, "architectures": 60, "command": "c", "seed": 0, "images": None,
        "source": "s", "best_of_sample": 93.2, "proxies": statistics, "fitted": fitted,
    }  # fmt: skip
    correlating.publish(tmp_path, result, panels)
    assert f"| {of_two[0]['guide']} | 30 | 30 | 0.9" in (tmp_path / "report.md").read_text()
    costless = [Entry(entry.architecture, entry.accuracy) for entry in entries]
    with pytest.raises(ESFormerError, match="add parameters and macs to --proxies"):
        correlating.fit_guides(costless, ["sed"], scores, 2, seed=0)


def test_a_batch_of_images_with_odd_names(tmp_path):
    folder = images(tmp_path / "photos", each=5)
    digest = read_batch(folder, 6, 10, 16, 0).digest
    odd = folder / "cat" / os.fsdecode(b"\xff\n.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "odd.png")
    (tmp_path / "odd.png").rename(odd)
    assert read_batch(folder, 11, 10, 16, 0).digest != digest
    odd.unlink()
    odd.symlink_to("/nowhere")
    with pytest.raises(ESFormerError, match=r"\\udcff\\n.png cannot be read \(No such file or directory\)$"):
        read_batch(folder, 11, 10, 16, 0)


def test_a_larger_sample_holds_a_smaller_one():
    entries = [Entry(str(i), 90.0) for i in range(100)]
    drawn = correlating.draw_sample(entries, 50, seed=3)
    assert correlating.draw_sample(entries, 20, seed=3) == drawn[:20]
    assert correlating.draw_sample(entries, 20, seed=4) != drawn[:20]
    assert set(correlating.draw_sample(entries, None, seed=3)) == set(entries)


def test_the_default_is_every_proxy_that_can_run(tmp_path):
    assert correlating.proxies_of(correlating.choose_guides(None, tmp_path)) == names()
    without = correlating.proxies_of(correlating.choose_guides(None, None))
    assert {get(name).needs for name in set(names()) - set(without)} == {"batch"}
    assert {"sed", "log_synflow"} <= set(without)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "nasbench"], "there is no benchmark 'nasbench'; there are nasbench101"),
        (["--table", "none.csv"], "none.csv: cannot be read as a CSV file: No such file or directory"),
        (["--dataset", "cifar100"], "channel-bench-resnet has no dataset 'cifar100'; it has cifar10"),
        (["--proxies", "sed,magic"], "there is no proxy 'magic'; there are activations"),
        (["--proxies", ","], "--proxies names none"),
        (["--proxies", "naswot"], "naswot looks at images; give a folder of them with --images, or --images noise"),
        (["--proxies", "sed+2*"], "'sed+2*' must be a sum of different proxies, such as 'naswot + 0.5*zico - meco'"),
        (["--proxies", "naswot", "--images", "none"], "--images is none, which is not a folder; it may also be noise"),
        (["--proxies", "naswot", "--images", "broken/one"], "broken/one must hold one folder of images a class"),
        (["--proxies", "naswot", "--images", "photos"], "photos has 2 images, but --batch-size is 64"),
        (["--proxies", "naswot", "--images", "many"], "many has 11 classes, but the dataset has only 10"),
        (["--proxies", "naswot", "--images", "broken", "--batch-size", "1"], "broken/one/0.png is not an image"),
        (["--sample", "7"], "--sample is 7, but the table has 6 architectures"),
        (["--seed", "-1"], "--seed is -1; it must be from 0 to 4294967295"),
        (["--out", "table.csv"], "table.csv is a file; --out must be a folder"),
        (["--out", "photos"], "photos holds no run but other files"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    images(Path("photos"), each=1, size=(8, 8))
    images(Path("many"), classes=map(str, range(11)), each=1, size=(8, 8))
    images(Path("broken"), classes=["one"], each=0)
    Path("broken/one/0.png").write_text("no image")
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: correlate.main([*COMMAND, *NETWORKLESS, *arguments]))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("wrong", [["--workers", "0"], ["--sample", "-3"], ["--batch-size", "many"]])
def test_counts_that_are_none(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        correlate.main([*COMMAND, *wrong])
    assert caught.value.code == 2
    assert "it must be a number from 1 on" in capsys.readouterr().err


def test_one_process_a_folder(monkeypatch):
    monkeypatch.setattr("pipelines.runtime.run_folder.PATIENCE", 0.3)
    with Folder(Path("out"), "", "--out") as other:
        other.claim("python -m pipelines.correlate", "seed: 0\n")
        with pytest.raises(
            ESFormerError, match="another process is at work in out; wait for it, or choose another --out"
        ):
            correlate.main([*COMMAND, *NETWORKLESS, "--out", "out"])
