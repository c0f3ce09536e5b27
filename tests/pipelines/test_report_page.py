"""A run's report: one file that holds what the run's files do, and in which nothing of them can run."""

import base64
import fcntl
import hashlib
import json
import random
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree

import pytest

from configs.compose import compose, to_yaml
from esformer import search
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.model.cost import Budget
from esformer.report import page as pages
from esformer.report import vega
from esformer.report.charts import STAGES, SearchCharts
from esformer.search.journal import Evaluation, read, read_header
from esformer.search.schedule import Schedule
from esformer.space import SearchSpace
from pipelines import report
from pipelines.runtime import reporting

PROXIES = dict(start_proxy="parameters", topology_proxy="parameters", size_proxy="macs")
SIZES = dict(starts=2, start_population=6, start_tournament=3, population=8, tournament=3, seeds=3, in_flight=4)
SCHEDULE = Schedule(unit="evaluations", start_length=15, phase_length=20, total=90, **SIZES, **PROXIES)
BUDGET = Budget(params=3_500_000, macs=8_000_000)
ROOT = Path(__file__).parent.parent.parent
HOSTILE = "</script><img src=x onerror=alert(1)>&\u2028'\""


class Parsed(HTMLParser):
    """A page as a browser takes it: its elements, the text outside of scripts, and the scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.scripts, self._open = [], [], {}, None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())
        (self.data,) = [json.loads(code) for code, kind in self.scripts.items() if kind == "application/json"]
        self.code = [code for code, kind in self.scripts.items() if kind is None]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[data] = self.elements[-1][1].get("type")
        elif self._open != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a full run, as it leaves it; its training is made up."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    folder.mkdir()
    found = search(SearchSpace.for_size("S0"), BUDGET, SCHEDULE, seed=1, checkpoint=folder / "journal.jsonl", **DATA)
    config = compose("S0", quick=True, overrides=["seed=7", f"run.dir={folder}"])
    (folder / "config.yaml").write_text(f"# python -m pipelines.full\n{to_yaml(config)}")
    found.genotype.save(folder / "genotype.yaml")
    rows = [
        "epoch,step,lr,train/loss,val/loss,val/top1,val/ema_top1",
        *(f"{i},{8 * i + 8},0.1,1,2,0.{i},0.{i}5" for i in range(3)),
    ]
    (folder / "metrics.csv").write_text("\n".join([*rows, ""]))
    (folder / "steps.csv").write_text("step,epoch,loss,lr,seconds\n4,0,1.5,0.1,20.5\n12,1,1.25,0.1,22\n")
    summary = {"params": found.cost.params, "macs": found.cost.macs, "search_score": found.scores, "ema_top1": 0.6543}
    (folder / "summary.json").write_text(json.dumps({**summary, "commands": ["python -m pipelines.full --quick"]}))
    (folder / "compared.csv").write_text(",found,efficientformerv2_s0\nnaswot,370.5,371.2\n")
    log = [
        "2026-01-01 10:00:00 command: python -m pipelines.full --quick",
        "2026-01-01 10:00:00 machine: Linux, 2 CPUs",
    ]
    (folder / "log.txt").write_text("\n".join([*log, "2026-01-01 10:00:09 warning: an image cannot be read", ""]))
    return folder


DATA = dict(cost_img_size=32, num_classes=10)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return Path(copytree(finished, tmp_path / "run"))


def read_page(path):
    return Parsed(path.read_text())


def made(*arguments):
    return read_page(report.main([*map(str, arguments)]))


def test_a_training_that_is_not_over_shows_how_far_it_is(run):
    (run / "summary.json").unlink()
    page = made(run)
    for words in ("training epoch 3 of 10", "top-1 20.00 %", "top-1, averaged weights 25.00 %"):
        assert words in page.text, words


def test_what_a_run_left_is_on_its_page(run, capsys):
    page = made(run)
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    for words in (
        "state finished",
        "command python -m pipelines.full --quick on Linux, 2 CPUs",
        "top-1, averaged weights 65.43 %",
        "training seconds 42.5",
        "2026-01-01 10:00:09 warning: an image cannot be read",
        "seed 0 7",
        "recipe.epochs 300 10",
        "multi-start 30 parameters",
        "Space S0, 32 pixels, 10 classes: ",
        "budget 3,500,000 parameters, 8,000,000 MACs",
        "Which classes are confused, and which images, this adds to the page: python -m pipelines.evaluate ",
        "stage 4, block 4 (attention)",
        "Beside EfficientFormerV2 found efficientformerv2_s0 naswot 370.5 371.2",
    ):
        assert words in page.text, words
    (line,) = [
        one for one in read(run / "journal.jsonl") if one.genotype == Genotype.load(run / "genotype.yaml").to_dict()
    ]
    words = f"By the guide of the last phase the best is evaluation {line.evaluation}; what was found is evaluation"
    assert f"{words} {line.evaluation}." in page.text
    other = next(iter(read(run / "journal.jsonl")))  # as a finalist is not always the first
    Genotype.from_dict(other.genotype).save(run / "genotype.yaml")
    assert f"{words} {other.evaluation}." in made(run).text
    assert len(page.data["charts"]) == len([e for e in page.elements if e[1].get("class") == "chart"]) == 13


def test_every_evaluation_of_the_journal_is_in_the_page(run):
    data = made(run).data["datasets"]["run 0 search"]
    columns, evaluations = data["columns"], list(read(run / "journal.jsonl"))
    assert columns["evaluation"] == [one.evaluation for one in evaluations] == list(range(1, 91))
    for name in ("params", "macs"):
        assert columns[name] == [getattr(one, name) for one in evaluations]
    for number, proxy in enumerate(("parameters", "macs")):
        assert columns[f"score {number}"] == [one.scores.get(proxy) for one in evaluations]
    for place, one in enumerate(evaluations):
        shown = [
            " ".join(data["words"][w] for w in data["coded"][name][place]) for name in ("phase", "origin", *STAGES)
        ]
        genes = [" ".join(".".join(map(str, b.values())) for b in stage) for stage in one.genotype["stages"]]
        assert shown == [one.phase, one.origin, *genes]


def test_the_line_of_the_best_and_the_front(run):
    columns = made(run).data["datasets"]["run 0 search"]["columns"]
    multi_start = columns["score 0"][:30]
    assert columns["best 0"][:30] == [max(multi_start[: i + 1]) for i in range(30)]
    last = [(m, w) for m, w, here in zip(columns["macs"], columns["worth"], columns["last"], strict=True) if here]
    front = {(m, w) for m, w, here in zip(columns["macs"], columns["worth"], columns["front"], strict=True) if here}
    assert front == {(m, w) for m, w in last if all(n > m or (v, -n) <= (w, -m) for n, v in last)}


def test_a_killed_run_is_shown_until_its_torn_line(run):
    for name in ("summary.json", "genotype.yaml", "metrics.csv"):
        (run / name).unlink()
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:41]) + lines[41][:50])
    page = made(run)
    assert page.data["datasets"]["run 0 search"]["columns"]["evaluation"] == list(range(1, 41))
    assert "state stopped before its end; the same command goes on" in page.text
    assert "search 40 evaluations in" in page.text and " of 90 evaluations planned; last in topology 1" in page.text
    begun = [*read(run / "journal.jsonl")][30:]
    best = max(begun, key=lambda one: one.scores["parameters"]).evaluation
    assert f"The best so far is evaluation {best}. " in page.text
    assert "The best so far. Space S0, 32 pixels" in page.text
    assert "run 0 training" not in page.data["datasets"]
    assert "parameters: each genotype" in page.text and "macs: each genotype" not in page.text  # no phase asked for it


def test_damaged_files_are_remarks(run):
    (run / "summary.json").write_text("{")
    (run / "genotype.yaml").write_text("space: S9")
    lines = (run / "journal.jsonl").read_text().splitlines()
    (run / "journal.jsonl").write_text("\n".join([*lines[:11], "nonsense", *lines[12:], ""]))
    page = made(run)
    assert page.data["datasets"]["run 0 search"]["columns"]["evaluation"] == list(range(1, 11))
    for words in ("summary.json: is not JSON", "genotype.yaml", "journal.jsonl: line 12 is not a line of a journal"):
        assert words in page.text
    header = json.loads(lines[0])
    (run / "journal.jsonl").write_text("\n".join([json.dumps({**header, "schedule": {"new": 1}}), *lines[1:], ""]))
    assert "is not as this version writes it" in made(run).text


@pytest.mark.parametrize(
    ("file", "content", "section"),
    [
        ("finalists.csv", "a,b\n" + "x" * 200_000 + ",1\n", "Finalists"),
        ("checkpoints/best-evaluation/evaluation.json", '{"classes": 5}', "Evaluation: best-evaluation"),
    ],
)
def test_a_section_that_cannot_be_made_is_a_remark(run, file, content, section):
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).write_text(content)
    report.main([str(run)])
    page = (run / "report.html").read_text()
    assert f"{section} cannot be shown" in page and "<h2>Network</h2>" in page and f"<h2>{section}</h2>" not in page


@pytest.fixture
def hostile(finished, tmp_path):
    """A run whose every text is one that a page must not take for HTML."""
    run = Path(copytree(finished, tmp_path / f"a<b>{HOSTILE.replace('/', '')}"))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, HOSTILE: HOSTILE, "search_score": {HOSTILE: 1.0}}))
    (run / "log.txt").write_text(f"2026-01-01 10:00:00 command: {HOSTILE}\n2026-01-01 10:00:00 warning: {HOSTILE}\n")
    (run / "finalists.csv").write_text(f"{HOSTILE.split(chr(34))[0]},b\n1,2\n")
    evaluation = run / "checkpoints" / "last-evaluation"
    evaluation.mkdir(parents=True)
    row = {"class": HOSTILE, "images": 3, "top1": 0.5, "precision": None, "taken_for": HOSTILE, "taken_for_images": 1}
    (evaluation / "evaluation.json").write_text(json.dumps({"top1": 0.5, "device": HOSTILE, "classes": [row]}))
    lines = (run / "journal.jsonl").read_text().splitlines()
    line = json.loads(lines[1])
    line["genotype"]["stages"][0][0]["ffn"] = HOSTILE
    (run / "journal.jsonl").write_text("\n".join([lines[0], json.dumps(line), *lines[2:], ""]))
    return run


def test_nothing_of_the_data_can_run(hostile, tmp_path):
    both = Path(copytree(hostile, tmp_path / "b"))
    for page in (made(hostile), made(hostile, both, "--output", tmp_path / "both.html")):
        assert {tag for tag, _ in page.elements} <= {*ELEMENTS, "nav", "a"}
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        links = [
            value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
        ]
        assert all(link.startswith("#run-") for link in links)
        assert any(word.startswith(HOSTILE) for word in page.data["datasets"]["run 0 search"]["words"])
        assert page.text.count("<img src=x onerror=alert(1)>") > 5


ELEMENTS = "html head meta title style body h1 h2 h3 p div table thead tbody tr th td ul li details summary pre".split()
ELEMENTS += ["figure", "figcaption", "script"]


def test_the_page_allows_its_own_scripts_and_no_address(run):
    page = made(run)
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in page.code]
    assert len(digests) == 2
    assert policy.split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        f"script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert not {"link", "img", "iframe"} & {tag for tag, _ in page.elements}


def test_several_runs_stand_side_by_side(run, tmp_path, monkeypatch):
    other = Path(copytree(run, tmp_path / "other"))
    (other / "summary.json").unlink()
    monkeypatch.chdir(tmp_path)
    page = read_page(report.main([str(run), str(other), str(run)]))
    assert Path("report.html").exists() and not (run / "report.html").exists()
    budget = "3,500,000 parameters, 8,000,000 MACs"
    assert f"{run} finished S0 {budget}" in page.text and f"{other} stopped S0 {budget}" in page.text
    assert (
        page.text.count("% of the budget") == 4
    )  # parameters and MACs of the finished one: beside the other, and in its section
    assert f"goes on with python -m pipelines.full --quick run.dir={other}" in page.text
    assert {"run 0 search", "run 1 search", "run 1 network"} <= page.data["datasets"].keys()
    shares = page.data["datasets"]["run 1 network"]["columns"]["share of time"]
    assert sum(float(share.removesuffix("%")) for share in shares) == pytest.approx(100, abs=0.05 * len(shares))
    columns = page.data["datasets"]["side by side"]["columns"]
    curves = {}
    for chart, name, x, y in zip(*columns.values(), strict=True):
        curves.setdefault((chart, name), []).append((x, y))
    assert "The settings that differ" not in page.text
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("seed: 7", "seed: 8"))
    assert "The settings that differ: setting" in (text := made(run, other, "--out", "o.html").text)
    assert "seed 7 8" in text
    config.write_text(config.read_text().replace("epochs: 10", "epochs: 11"))
    assert "recipe.epochs 10 11" in made(run, other, "--out", "o.html").text
    for folder in (run, other):
        (folder / "metrics.csv").unlink()
    assert "recipe.epochs 10 11" not in made(run, other, "--out", "o.html").text  # nothing was trained by it
    for path in (run, other):
        assert curves["Validation top-1, averaged weights", str(path)] == [(1, 0.05), (2, 0.15), (3, 0.25)]
        scores = [one.scores.get("macs", 0) for one in read(path / "journal.jsonl")]
        best = [(i + 1, score) for i, score in enumerate(scores) if score > max(scores[:i], default=0)]
        assert curves["macs: the best so far", str(path)] == [*best, (90, max(scores))]


def test_while_a_run_is_at_work_its_network_is_not_timed(run, tmp_path):
    other = Path(copytree(run, tmp_path / "other"))
    (other / "summary.json").unlink()
    with (other / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        columns = read_page(report.main([str(other)])).data["datasets"]["run 0 network"]["columns"]
    assert "MACs" in columns and not {"ms", "share of time"} & columns.keys()


def test_parts_that_cannot_be_timed_are_shown_without_times(run, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(reporting, "measure_parts", fail)
    page = made(run)
    assert "The time of each part could not be measured: MemoryError" in page.text
    columns = page.data["datasets"]["run 0 network"]["columns"]
    assert "MACs" in columns and not {"ms", "share of time"} & columns.keys()


def test_what_is_no_run_is_refused_with_a_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in {
        tmp_path / "none": "none is not there; give the folder of a run",
        run / "config.yaml": "config.yaml is a file; give the folder",
        tmp_path / "empty": "empty is not the folder of a run: it holds no config.yaml",
    }.items():
        with pytest.raises(ESFormerError, match=message):
            report.main([str(path)])
    (run / "config.yaml").write_text("# python -m pipelines.survey\nseed: 0\n")
    with pytest.raises(
        ESFormerError, match=r"is not a run of full, search, train: .* begins with '# python -m pipelines.survey'"
    ):
        report.main([str(run)])


def test_without_the_package_pictures_stand_in_place_of_charts(run, monkeypatch):
    monkeypatch.setattr(pages, "javascript", lambda: None)
    (run / "search.png").write_bytes(b"a picture")
    page = made(run)
    assert page.data == {"datasets": {}, "charts": []} and page.code == []
    assert [a["src"] for tag, a in page.elements if tag == "img"] == ["data:image/png;base64,YSBwaWN0dXJl"]
    assert "With pip install vl-convert-python this page has charts" in page.text and "stage 4, block 4" in page.text


def test_the_script_is_kept_and_a_package_that_fails_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vega, "BUNDLE", "print('vegaEmbed = 1', end='')")
    assert vega.javascript.__wrapped__() == "vegaEmbed = 1"
    monkeypatch.setattr(vega, "BUNDLE", "raise SystemExit(1)")
    assert vega.javascript.__wrapped__() == "vegaEmbed = 1"
    (kept,) = (tmp_path / "esformer").iterdir()
    kept.unlink()
    assert vega.javascript.__wrapped__() is None


def test_a_browser_draws_it_answers_to_the_pointer_and_runs_nothing_else(hostile, fresh_process):
    path = report.main([str(hostile)])
    seen = json.loads(fresh_process(ROOT / "tests/browser.py", path).splitlines()[-1])
    if "missing" in seen:
        pytest.skip(f"no browser: pip install pyside6-webengine ({seen['missing']})")
    assert seen["console"] == [] and seen["images"] == seen["requests"] == 0
    assert seen["drawn"] == "light" and seen["charts"] == seen["canvases"] == 12
    assert seen["wide"] <= 0 and seen["points"] > 40
    evaluation = list(read(hostile / "journal.jsonl"))[seen["evaluation"] - 1]
    lines = [line.strip() for line in seen["tooltip"].splitlines() if line.strip()]
    shown = dict(zip(lines[::2], lines[1::2], strict=True))
    assert shown["evaluation"] == str(evaluation.evaluation) and shown["MACs"] == f"{evaluation.macs:,}"
    assert shown["stage 1"].split()[1] == ".".join(map(str, evaluation.genotype["stages"][0][1].values()))


def test_a_long_search_is_thinned_and_the_page_of_a_usual_one_is_small(finished, draw):
    header = read_header(finished / "journal.jsonl")
    pool = [draw("S2", seed).to_dict() for seed in range(200)]
    rng = random.Random(0)
    charts = SearchCharts({**header, "schedule": {**header["schedule"], "total": 20_030.0, "phase_length": 10_000.0}})
    phases = ["multi-start 1"] * 30 + ["topology 1"] * 10_000 + ["size 1"] * 10_000
    for i, phase in enumerate(phases):
        scores = {"macs" if phase == "size 1" else "parameters": rng.random()}
        cost = rng.randrange(10**8)
        charts.append(Evaluation(i + 1, phase, "mutation", scores, cost, cost, None, 0.01, i / 100, rng.choice(pool)))
    data = charts.data()
    assert 6000 <= len(data.columns["evaluation"]) < 6200
    best = max(range(10_030, 20_030), key=lambda i: charts.trajectory.scores("macs")[i])
    assert best + 1 in data.columns["evaluation"]
    page = pages.Page("a search")
    page.charts("search", data, charts.charts())
    assert len(page.html()) < 5_000_000
