"""The report of a run, or of several side by side, as one HTML file: what `pipelines.report` does, and each run."""

import csv
import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from callbacks.checkpoints import BEST
from configs.compose import leaves
from esformer.errors import first_line
from esformer.files import read_text, write_text
from esformer.genotype import Genotype, parse
from esformer.model.latency import measure_parts
from esformer.model.parts import parts
from esformer.report import charts
from esformer.report.page import Page, folded, picture, table, text
from esformer.search.trajectory import PhaseRange
from esformer.text import number
from esformer.throttle import Throttle
from pipelines.runtime.console import label, readable
from pipelines.runtime.record import Record, read_run

log = logging.getLogger("esformer")

NAME = "report.html"
SHARE = 0.01
"""How much of a run's time its report may take."""
EVERY = 30.0
"""The least seconds between two writings while a run is at work."""
LARGEST = 4e9
"""MACs of a network whose parts are timed; it takes a few seconds up to there."""
FEW = 12
"""Settings that are shown unasked."""
WORST = 20
"""Classes of an evaluation that are listed, those that are told worst."""
STATES = {
    "finished": "finished",
    "running": "at work when this page was written",
    "stopped": "stopped before its end; the same command goes on where it was",
}
TOP1 = {"val/top1": "Validation top-1, raw weights", "val/ema_top1": "Validation top-1, averaged weights"}


class LiveReport:
    """Writes the report of a run while it is at work, and at its end. It takes little time, and never ends a run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._throttle = Throttle(EVERY, at_once=False)

    def __call__(self, at_end: bool = False) -> None:
        """Write it, if it is time again.

        Args:
            at_end: whether a stage, or the run, is at its end; then it is always time.
        """
        if not (self._throttle.due() or at_end) or not (self.folder / "config.yaml").exists():
            return  # the folder of a trial, or of one of the searches of an ablation, is none of a run
        began = time.monotonic()
        try:
            write([self.folder], self.folder / NAME, timed=(self.folder / "summary.json").exists())
        except Exception as error:  # whatever it is: the run is worth more than its report
            log.warning("%s could not be written: %s", self.folder / NAME, error)
        self._throttle.wait(max(EVERY, (time.monotonic() - began) / SHARE))


def write(folders: Sequence[Path], output: Path, timed: bool = True) -> None:
    """Write the report of some runs.

    Args:
        folders: of the runs, each once.
        output: the HTML file.
        timed: measure how long each part of their networks takes, which takes some seconds.

    Raises:
        ESFormerError: one of the folders holds no run, or the file cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    title = f"{runs[0].path.resolve().name}: {runs[0].kind}" if len(runs) == 1 else f"{len(runs)} runs side by side"
    page = Page(title)
    if len(runs) > 1:
        page.add(*side_by_side(page, runs))
    for place, run in enumerate(runs):
        if len(runs) > 1:
            page.add(f'<h2 id="run-{place}">{text(run.path)}</h2>')
        for heading, section in sections(page, run, f"run {place}", timed).items():
            if section:
                page.add(f"<h3>{text(heading)}</h3>" if len(runs) > 1 else f"<h2>{text(heading)}</h2>", section)
    page.add(f'<p class="quiet">Written {time.strftime("%Y-%m-%d %H:%M:%S %Z")}.</p>')
    write_text(output, page.html())


def sections(page: Page, run: Record, name: str, timed: bool) -> dict[str, str]:
    """The sections of a run by their headings; one without data is empty, and one that cannot be made a remark."""
    makers: dict[str, Callable[[], str]] = {
        "Run": lambda: about(run),
        "Result": lambda: result(run),
        "What went wrong": str,  # until all the others have been made
        "Search": lambda: searched(page, run, name),
        "Beside EfficientFormerV2": lambda: rows_of(run.path / "compared.csv"),
        "Finalists": lambda: rows_of(run.path / "finalists.csv"),
        "Network": lambda: network(page, run, name, timed and run.state != "running"),
        "Training": lambda: trained(page, run, name),
        **{f"Evaluation: {f.name}": partial(evaluated, f, found) for f, found in run.evaluated.items()},
        **({} if run.evaluated or not run.epochs else {"Evaluation": lambda: unevaluated(run)}),
        "Settings": lambda: settings(run),
        "Log": lambda: logged(run),
    }
    made = {}
    for heading, make in makers.items():
        try:
            made[heading] = make()
        except Exception as error:  # whatever a damaged file holds: the rest of the page goes on without
            made[heading] = ""
            run.remarks.append(f"{heading} cannot be shown: {first_line(error)}")
    return made | {"What went wrong": wrong(run)}


def about(run: Record) -> str:
    """What it is, in which state, where, and how it was made."""
    commands = run.commands or run.summary.get("commands") or []
    rows = [("state", STATES[run.state]), ("folder", run.path.resolve())]
    rows += [("space", run.space)]
    rows += [("goes on with", run.go_on)] if run.state == "stopped" and run.go_on else []
    rows += [("command", commands[-1])] if commands else [("kind", f"python -m pipelines.{run.kind}")]
    rows += [("sessions", len(run.commands))] if len(run.commands) > 1 else []
    rows += [("on", machine) for machine in dict.fromkeys(run.machines)]
    rows += [("images", run.setting("data.root") or run.setting("data.name"))] if not run.of_other_space else []
    rows += [("seed", run.setting("seed"))]
    rows += [("budget", limits(run))] if run.kind != "train" else []
    return table((), rows)


def limits(run: Record) -> str:
    """The budget of its search."""
    if run.kind == "train":
        return "-"
    return ", ".join(f"{number(limit)} {charts.COSTS[cost]}" for cost, limit in budget(run).items()) or "no limit"


def budget(run: Record) -> dict[str, float]:
    """What a search may spend, as far as it is limited: by the names of `charts.COSTS`."""
    if run.kind == "train":
        return {}
    known = run.header.get("budget") or {}
    limits = {cost: known.get(cost) or run.setting(f"budget.{cost}") for cost in charts.COSTS}
    return {cost: int(limit) if cost != "latency_ms" else limit for cost, limit in limits.items() if is_number(limit)}


def is_number(value: Any) -> bool:
    """Whether it is one that can be counted with."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def result(run: Record) -> str:
    """The summary; of a run that is not over, how far it is."""
    rows = [(label(key), _of_budget(run, key, value)) for key, value in run.summary.items()]
    rows = [(key, shown) for key, shown in rows if shown]
    if rows and (seconds := sum(row.get("seconds", 0.0) for row in run.steps)):
        rows.append(("training seconds", number(seconds)))
    if not rows and (last := run.last):
        schedule = run.header["schedule"]
        planned = f"{int(schedule['total']):,} {schedule['unit']}"
        done = f"{last.evaluation:,} evaluations in {last.elapsed:,.0f} s, of {planned} planned; last in {last.phase}"
        rows.append(("search", done))
    if not run.summary and run.epochs:
        rows.append(("training", f"epoch {run.epochs[-1]['epoch'] + 1} of {run.setting('recipe.epochs')}"))
        last_epoch = {key.removeprefix("val/"): value for key, value in run.epochs[-1].items() if "top" in key}
        rows += [(label(key), readable(key, value)) for key, value in last_epoch.items()]
    return table((), rows) if rows else "<p>Nothing yet.</p>"


def _of_budget(run: Record, key: str, value: Any) -> str:
    """A value of a summary; of what is limited, the share of the limit too."""
    limit = budget(run).get(key)
    return _shown(key, value) + (f" ({value / limit:.0%} of the budget)" if limit and is_number(value) else "")


def _shown(key: str, value: Any) -> str:
    if key == "latency" and isinstance(value, Mapping):
        return f"{number(value.get('ms'))} ± {number(value.get('error_ms'))} ms for one image"
    return "" if key == "commands" or isinstance(value, list) else readable(key, value)


def wrong(run: Record) -> str:
    """Warnings of its log, and what of its folder could not be read."""
    lines = [*run.remarks, *run.warnings]
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def searched(page: Page, run: Record, name: str) -> str:
    """Every evaluation of the search."""
    made = run.search
    if not made:
        return ""
    spans = made.trajectory.spans()
    rows = [(span.name, span.stop - span.start, str(span.guide), *_best(made, span)) for span in spans]
    head = ("phase", "evaluations", "guide", "its best: evaluation", "score", "parameters", "MACs")
    place = None if run.genotype is None else made.place_of(run.genotype.to_dict())
    found = "The best so far is" if run.genotype is None else "By the guide of the last phase the best is"
    found += f" evaluation {made.best + 1:,}"
    found += "." if place is None else f"; what was found is evaluation {place + 1:,}."
    genes = "Each point is a genotype and shows its blocks: FFN.kernel.channels.ratio, and of Transformer layers"
    genes += " FFN.heads.channels.ratio.key channels."
    front = f"The Pareto front of {spans[-1].guide} against {charts.COSTS[made.front_cost]} in the last phase"
    return "".join(
        [
            f"<p>{found}</p>",
            "" if run.of_other_space else f"<p>{genes}</p>",
            page.charts(
                f"{name} search", made.data(), made.charts(), [run.path / "search.png", run.path / "front.png"]
            ),
            folded("Phase by phase", table(head, rows)),
            folded(front, table(*made.front())),
        ]
    )


def _best(made: charts.SearchCharts, span: PhaseRange) -> tuple[str, ...]:
    """The score and cost of what a phase found."""
    place = span.start + int(made.trajectory.best(span)[-1])
    best = slice(place, place + 1)
    scores = ", ".join(f"{made.trajectory.scores(proxy, best)[0]:.6g}" for proxy in span.proxies)
    return f"{place + 1:,}", scores, *(f"{made.trajectory.column(cost, best)[0]:,}" for cost in ("params", "macs"))


def rows_of(file: Path) -> str:
    """A file of the run's folder as a table, if it is there."""
    rows = list(csv.reader(read_text(file).splitlines())) if file.is_file() else []
    return table(rows[0], rows[1:]) if rows else ""


def network(page: Page, run: Record, name: str, timed: bool) -> str:
    """The network part by part; of a search that is not over, the best so far."""
    genotype, state = run.genotype, ""
    if genotype is None and run.search and not run.of_other_space:
        genotype, state = parse(run.search.notation(run.space)), "The best so far. "
    if genotype is None:
        return "" if run.kind == "train" or run.of_other_space else "<p>None was found yet.</p>"
    if not isinstance(genotype, Genotype):
        costs = [(name, f"{run.summary[name]:,}") for name in ("params", "macs") if name in run.summary]
        of_space = f"<p>A network of space {text(genotype.space)}:</p><pre>{text(genotype)}</pre>"
        return of_space + table((), costs)
    made = parts(genotype, run.img_size, run.num_classes)
    params, macs = (sum(getattr(part.cost, name) for part in made) for name in ("params", "macs"))
    total, times_ms = f"{params:,} parameters, {macs:,} MACs", None
    if timed and macs <= LARGEST:  # a training, and those who wait for it, have other things to do
        try:
            times_ms = measure_parts(genotype, run.img_size, run.num_classes)
            total += f"; {sum(times_ms):.3g} ms for an image on one thread of this page's machine, in PyTorch"
        except Exception as error:  # too little memory, perhaps, where costs are known all the same
            run.remarks.append(f"The time of each part could not be measured: {first_line(error)}")
    rows = charts.part_rows(made, times_ms)
    data, specs = charts.network(rows)
    shown = ("part", "genes", "shape", "parameters", "MACs", *(("share of time",) if times_ms else ()))
    return "".join(
        [
            f"<p>{state}Space {text(genotype.space)}, {run.img_size} pixels, {run.num_classes} classes: {total}.</p>",
            page.charts(f"{name} network", data, specs, [run.path / "genotype.png"]),
            folded("Part by part", table(shown, [[number(row[key]) for key in shown] for row in rows])),
        ]
    )


def trained(page: Page, run: Record, name: str) -> str:
    """The curves of the training."""
    if not run.epochs:
        return ""
    data, specs = charts.training(run.epochs, run.steps)
    scales = (
        "The loss of the training is the recipe's, on augmented images; that of the validation is cross-entropy, on"
    )
    scales += " images as they are: they have different scales."
    return f"<p>{scales}</p>" + page.charts(f"{name} training", data, specs, [run.path / "training.png"])


def evaluated(folder: Path, found: Mapping[str, Any]) -> str:
    """What `pipelines.evaluate` found: figures, the classes that are told worst, and which are taken for which."""
    figures = ["weights", "images", "top1", "top5", "loss", "calibration_error", "latency", "images_per_second"]
    figures += ["batch_size", "device", "threads", "precision", "command"]
    rows = [(label(name), _shown(name, found[name])) for name in figures if name in found]
    classes = [
        one for one in found.get("classes") or () if isinstance(one, Mapping) and isinstance(one.get("top1"), float)
    ]
    worst = sorted((one for one in classes if one["top1"] < 1), key=lambda one: one["top1"])[:WORST]
    columns = ("class", "images", "top1", "precision", "taken_for", "taken_for_images")
    below = [[readable(column, one.get(column)) for column in columns] for one in worst]
    return "".join(
        [
            table((), rows),
            f"<p>The {len(worst)} of {len(classes)} classes that are told worst:</p>" if worst else "",
            table([label(column) for column in columns], below) if worst else "",
            picture(folder / "confusion.png", "which classes are taken for which"),
            picture(folder / "mistakes.png", "the images that it is most wrong about"),
        ]
    )


def unevaluated(run: Record) -> str:
    """How to learn which classes are confused, of a run whose checkpoints nobody has evaluated."""
    command = f"python -m pipelines.evaluate {shlex.quote(str(run.path / 'checkpoints' / BEST))}"
    return f"<p>Which classes are confused, and which images, this adds to the page:</p><pre>{text(command)}</pre>"


def settings(run: Record) -> str:
    """How its settings differ from the defaults of its size."""
    if not run.changed:
        return f"<p>The defaults of size {text(run.setting('size'))}.</p>"
    rows = [["null" if value is None else value for value in change] for change in run.changed]
    made = table(("setting", "default", "here"), rows)
    return folded(f"{len(rows)} settings that are not the default", made) if len(rows) > FEW else made


def logged(run: Record) -> str:
    """What was said last."""
    lines = "\n".join(map(text, run.log))
    return folded(f"the last {len(run.log)} lines", f"<pre>{lines}</pre>") if lines else ""


def _differing(runs: Sequence[Record]) -> list[list[Any]]:
    """The settings that are not the same in all runs, and their values; where a run lies is above."""
    left_out = ("run.dir", *(() if any(run.epochs for run in runs) else ("recipe.",)))  # of no use without a training
    keys = dict.fromkeys(key for run in runs for key, _ in leaves(run.config) if not key.startswith(left_out))
    rows = [[key, *(run.setting(key) for run in runs)] for key in keys]
    return [
        [key, *("null" if value is None else value for value in values)]
        for key, *values in rows
        if any(value != values[0] for value in values)
    ]


def side_by_side(page: Page, runs: Sequence[Record]) -> list[str]:
    """A table of the runs, and their searches and trainings in one chart each."""
    keys = ["params", "macs", "search_evaluations", "search_seconds", "search_score", "top1", "ema_top1"]
    keys += ["accuracy", "rank", "regret"] if any(run.of_other_space for run in runs) else []
    head = ("run", "state", "space", "budget", *map(label, keys))
    rows = [(r.path, r.state, r.space, limits(r), *(_of_budget(r, k, r.summary.get(k)) for k in keys)) for r in runs]
    links = "".join(f'<a href="#run-{place}">{text(run.path)}</a>' for place, run in enumerate(runs))
    parts = [f"<nav>{links}</nav>", table(head, rows)]
    if differing := _differing(runs):
        parts += ["<p>The settings that differ:</p>", table(("setting", *(run.path for run in runs)), differing)]
    several = len({run.space for run in runs}) > 1
    curves: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        for column, caption in TOP1.items():
            if points := [(row["epoch"] + 1, row[column]) for row in run.epochs if column in row]:
                curves.setdefault((caption, "epoch"), {})[str(run.path)] = points
        for proxy in run.search.trajectory.proxies if run.search else ():
            where = f" in space {run.space}" if several else ""  # scores of different spaces do not compare
            lines = curves.setdefault((f"{proxy}{where}: the best so far", "evaluation"), {})
            lines[str(run.path)] = run.search.records(proxy) if run.search else []
    return [*parts, page.charts("side by side", *charts.comparison(curves))] if curves else parts
