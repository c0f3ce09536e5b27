"""The charts of a report: data in columns, and specifications in Vega-Lite, as plain dictionaries.

No name that comes from data becomes the name of a field or an expression: columns are called by place, such as
`score 0`, and what people read are titles.
"""

from array import array
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from esformer.genotype import ConvBlock
from esformer.model.parts import Part
from esformer.report.page import Data, Spec
from esformer.search.front import front
from esformer.search.journal import Evaluation
from esformer.search.schedule import Schedule
from esformer.search.trajectory import Trajectory
from esformer.text import number

PHASES = {"multi-start": "#7f8ea3", "topology": "#3f7fd0", "size": "#e08a1e", "joint": "#3a9d5d"}
"""The colour of each kind of phase, on light and on dark."""
OTHER = "stem, downsampling, classifier"
KINDS = {"ibn": "#4aa3c7", "convnext": "#e0a100", "bottleneck": "#5fae7b", OTHER: "#8b95a3"}
SERIES = {"raw": "#3f7fd0", "averaged": "#e08a1e", "training": "#3f7fd0", "validation": "#e08a1e"}
BEST = "#d9483b"
COSTS = {"params": "parameters", "macs": "MACs", "latency_ms": "latency [ms]"}
STAGES = ("stage 1", "stage 2", "stage 3", "stage 4")
"""Columns of texts."""
MOST = 6000
"""Evaluations of a search that a page shows."""
STEPS = 1000
"""Training steps that are drawn, at most."""


def x_y(x: str, y: str, titles: tuple[str, str], numbers: str = "~s", **more: Any) -> dict[str, Any]:
    """Two quantitative axes, their numbers as D3 writes them (`~s`: 3.5M; else plain), and whatever else is encoded."""
    scale: dict[str, Any] = {"type": "quantitative", "scale": {"zero": False}}
    axis = {"tickCount": 5, **({"format": numbers} if numbers else {})}
    return {
        "x": {"field": x, "title": titles[0], "axis": axis, **scale},
        "y": {"field": y, "title": titles[1], "axis": axis, **scale},
        **more,
    }


def colour(field: str, colours: Mapping[str, str], present: Sequence[str]) -> dict[str, Any]:
    """A colour for each of a few words that are there."""
    shown = {word: colour for word, colour in colours.items() if word in present}
    return {"field": field, "type": "nominal", "title": None, "scale": {"domain": [*shown], "range": [*shown.values()]}}


def tip(titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Numbers that are shown at a point: the titles of columns."""
    number = {"type": "quantitative", "format": ",.10~g"}
    return [{"field": name, "title": title, **number} for name, title in titles.items()]


def words(*names: str) -> list[dict[str, Any]]:
    """Columns of texts that are shown at a point."""
    return [{"field": name, "type": "nominal", "title": name} for name in names]


class SearchCharts:
    """A search, evaluation by evaluation, in a few hundred bytes each: one that lasts an hour has some 100,000.

    Args:
        header: of the journal.

    Raises:
        ESFormerError, LookupError, TypeError: the header is of no search that this version makes.
    """

    def __init__(self, header: Mapping[str, Any]) -> None:
        self.trajectory = Trajectory(Schedule(**header["schedule"]).steps())
        self.family: str | None = header["schedule"].get("family")
        self.budget: Mapping[str, float | None] = header["budget"]
        self._words: dict[str, int] = {}
        self.coded: tuple[str, ...] = ("phase", "origin", *STAGES)
        """What is said of each evaluation in words."""
        self._coded: list[list[array[int]]] = []  # that, as places of words

    def append(self, evaluation: Evaluation) -> None:
        """Add the next one of the journal.

        Raises:
            LookupError, ValueError, TypeError, AttributeError: its phase or its genotype is not one of this search.
        """
        genes = _genes_of(evaluation.genotype)
        self.coded = self.coded if self._coded else ("phase", "origin", *genes)
        if self.coded[2:] != (*genes,):
            raise LookupError("a genotype of another space")
        texts = [[evaluation.phase], [evaluation.origin], *genes.values()]
        self.trajectory.append(evaluation)
        self._coded.append([array("L", (self._words.setdefault(w, len(self._words)) for w in text)) for text in texts])

    def __len__(self) -> int:
        return len(self._coded)

    def data(self) -> Data:
        """The evaluations, or so many of them as a page holds: evenly spread, with the best and the Pareto front."""
        trajectory, spans = self.trajectory, self.trajectory.spans()
        best = {span.start + int(place) for span in spans for place in trajectory.best(span)}
        start, worth = spans[-1].start, self._worth()
        on_front = {start + int(i) for i in front(trajectory.column(self.front_cost)[start:], worth[start:])}
        even = np.linspace(0, len(self) - 1, min(len(self), MOST)).astype(int).tolist()
        shown = np.array(sorted({*even, *on_front, *(best if len(best) < MOST else ())}))
        lengths = [span.stop - span.start for span in spans]
        columns: dict[str, list[Any]] = {
            "evaluation": (shown + 1).tolist(),
            "stretch": np.repeat(np.arange(len(spans)), lengths)[shown].tolist(),
            "kind": np.repeat([span.kind for span in spans], lengths)[shown].tolist(),
            "last": (shown >= start).astype(int).tolist(),
            "front": [int(place in on_front) for place in shown.tolist()],
            "worth": worth[shown].tolist(),
            **{name: trajectory.column(name)[shown].tolist() for name in trajectory.costs},
        }
        for n, proxy in enumerate(trajectory.proxies):
            columns[f"score {n}"] = trajectory.scores(proxy)[shown].tolist()
            columns[f"best {n}"] = self._best(proxy)[shown].tolist()
        coded = {name: [self._coded[place][n].tolist() for place in shown] for n, name in enumerate(self.coded)}
        return Data(columns, coded, [*self._words])

    def charts(self) -> dict[str, Spec]:
        """Scores and costs over the evaluations, then the score of the last phase against costs, by captions.

        Lines come before points, which lie above and answer to the pointer.
        """
        proxies, costs, spans = self.trajectory.proxies, self.trajectory.costs, self.trajectory.spans()
        made: dict[str, list[Spec]] = {}
        for n, proxy in enumerate(proxies):
            if not any(proxy in span.proxies for span in spans):
                continue  # a phase to come asks for it
            points = self._points("evaluation", f"score {n}", ("evaluation", proxy))
            line = self._line("evaluation", f"best {n}", detail={"field": "stretch"})
            made[f"{proxy}: each genotype, and the best of each phase so far"] = [line, points]
        for name in costs:
            points = self._points("evaluation", name, ("evaluation", COSTS[name]))
            limit = self._limit("y", name)
            made[f"{COSTS[name]} of each genotype{'; dashed: the budget' if limit else ''}"] = [points, *limit]
        guide = str(spans[-1].guide)
        last, on_front = ({"filter": {"field": name, "equal": value}} for name, value in (("last", 1), ("front", 1)))
        for name in costs:
            layers = [
                self._points(name, "worth", (COSTS[name], guide)) | {"transform": [last]},
                *self._limit("x", name),
            ]
            caption = f"{guide} against {COSTS[name]} in the last phase"
            if name == self.front_cost:
                layers.insert(0, self._line(name, "worth") | {"transform": [on_front]})
                caption += ", and its Pareto front"
            made[caption] = layers
        return {caption: {"layer": layers} for caption, layers in made.items()}

    def place_of(self, genotype: Mapping[str, Any]) -> int | None:
        """Where a genotype, as its `to_dict`, was evaluated last; None if it was not."""
        wanted = [[self._words.get(word) for word in words] for words in _genes_of(genotype).values()]
        places = (n for n in reversed(range(len(self))) if [[*codes] for codes in self._coded[n][2:]] == wanted)
        return next(places, None)

    @property
    def best(self) -> int:
        """Where the best of the last phase stands, by the guide of that phase."""
        last = self.trajectory.last_span()
        return last.start + int(self.trajectory.best(last)[-1])

    def notation(self, space: str) -> str:
        """The best of the last phase, as `esformer.genotype.parse` reads it."""
        return f"{space}: " + " / ".join(self._said(self.best, stage) for stage in STAGES)

    def front(self) -> tuple[tuple[str, ...], list[list[str]]]:
        """The head and the rows of a table: the Pareto front of the last phase, the cheapest first, with its genes."""
        start, worth, cost = self.trajectory.last_span().start, self._worth(), self.trajectory.column(self.front_cost)
        places = [start + int(place) for place in front(cost[start:], worth[start:])]
        names = self.coded[2:]
        rows = [
            [f"{place + 1:,}", number(float(worth[place])), number(cost[place].item()), *self._genes(place)]
            for place in places
        ]
        return ("evaluation", str(self.trajectory.last_span().guide), COSTS[self.front_cost], *names), rows

    def _genes(self, place: int) -> list[str]:
        return [self._said(place, name) for name in self.coded[2:]]

    def _said(self, place: int, name: str) -> str:
        words = [*self._words]
        return " ".join(words[code] for code in self._coded[place][self.coded.index(name)])

    def records(self, proxy: str) -> list[tuple[float, float]]:
        """The evaluations that scored better than all before, and the last one: their numbers, and the best score."""
        best = np.fmax.accumulate(np.nan_to_num(self.trajectory.scores(proxy), nan=-np.inf))
        places = np.flatnonzero(best > np.concatenate([[-np.inf], best[:-1]]))
        return [(int(place) + 1, float(best[place])) for place in (*places, len(self) - 1)]

    @property
    def front_cost(self) -> str:
        """The cost of the Pareto front: that of a family, what the budget limits beside parameters, or these."""
        limited = (name for name in ("latency_ms", "macs") if self.budget.get(name))
        return self.family or next(limited, "params")

    def _best(self, proxy: str) -> np.ndarray:
        """The score of the best genotype of its phase until each evaluation; NaN where others rank."""
        scores = self.trajectory.scores(proxy)
        best = np.full(len(scores), np.nan)
        for span in self.trajectory.spans():
            if proxy in span.proxies:
                best[span.slice] = scores[span.slice][self.trajectory.best(span)]
        return best

    def _worth(self) -> np.ndarray:
        """What the guide of the last phase gives to each of its genotypes; NaN before."""
        last, worth = self.trajectory.last_span(), np.full(len(self), np.nan)
        worth[last.slice] = last.guide.worth({p: self.trajectory.scores(p, last.slice) for p in last.proxies})
        return worth

    def _points(self, x: str, y: str, titles: tuple[str, str]) -> Spec:
        scores = {f"score {n}": proxy for n, proxy in enumerate(self.trajectory.proxies)}
        costs = {name: COSTS[name] for name in self.trajectory.costs}
        shown = [*tip({"evaluation": "evaluation", **scores, **costs}), *words(*self.coded)]
        colours = colour("kind", PHASES, [span.kind for span in self.trajectory.spans()])
        mark = {"type": "point", "filled": True, "size": 24, "opacity": 0.5}
        return {"mark": mark, "encoding": x_y(x, y, titles, color=colours, tooltip=shown)}

    def _line(self, x: str, y: str, **more: Any) -> Spec:
        mark = {"type": "line", "color": BEST, "strokeWidth": 1.8}
        return {"mark": mark, "encoding": x_y(x, y, ("", ""), **more)}

    def _limit(self, axis: str, name: str) -> list[Spec]:
        limit = self.budget.get(name)
        rule = {"mark": {"type": "rule", "strokeDash": [5, 4]}, "encoding": {axis: {"datum": limit}}}
        return [rule] if limit else []


def _genes_of(genotype: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is said of a genotype in words: its blocks by stages; of another space the architecture."""
    if "architecture" in genotype:
        return {"architecture": [str(genotype["architecture"])]}
    stages = [[".".join(map(str, block.values())) for block in stage] for stage in genotype["stages"]]
    return dict(zip(STAGES, stages, strict=True))


def network(rows: Sequence[Mapping[str, Any]]) -> tuple[Data, dict[str, Spec]]:
    """The network part by part: how wide it is, and where its MACs, its parameters and its time are.

    Args:
        rows: those of `part_rows`.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    titles = {"channels": "channels out", "MACs": "MACs", "parameters": "parameters"}
    shown = [*words("part", "genes", "shape"), *tip({"parameters": "parameters", "MACs": "MACs"})]
    if "ms" in columns:
        titles["ms"] = "time [ms]"
        shown += words("share of time")

    def bars(field: str, title: str) -> Spec:
        y = {"field": field, "type": "quantitative", "title": title, "axis": {"tickCount": 5, "format": "~s"}}
        unlabelled = {"labels": False, "ticks": False}
        x = {"field": "place", "type": "ordinal", "title": "stem to classifier", "axis": unlabelled}
        colours = colour("kind", KINDS, columns["kind"])
        return {"mark": {"type": "bar"}, "encoding": {"x": x, "y": y, "color": colours, "tooltip": shown}}

    captions = {"channels": "Width of each part, from the stem to the classifier", "MACs": "MACs of each part"}
    captions |= {"parameters": "Parameters of each part", "ms": "Time of each part"}
    return Data(columns), {captions[field]: bars(field, title) for field, title in titles.items()}


def part_rows(parts: Sequence[Part], times_ms: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """What is said of each part, in its tooltip and in the table.

    Args:
        parts: of the network, in order.
        times_ms: how long each takes, if that is known.
    """
    rows = [_part_row(place, part) for place, part in enumerate(parts)]
    if times_ms is not None:
        whole = sum(times_ms)
        for row, ms in zip(rows, times_ms, strict=True):
            row |= {"ms": round(ms, 4), "share of time": f"{ms / whole:.1%}"}
    return rows


def _part_row(number: int, part: Part) -> dict[str, Any]:
    genes = "-" if part.block is None else ", ".join(f"{name} {value}" for name, value in part.block.genes().items())
    return {
        "place": number,
        "part": part.name if part.block is None or isinstance(part.block, ConvBlock) else f"{part.name} (attention)",
        "kind": OTHER if part.block is None else part.block.ffn,
        "genes": genes,
        "shape": " x ".join(map(str, part.shape)),
        "channels": part.shape[0] if len(part.shape) == 3 else None,
        "parameters": part.cost.params,
        "MACs": part.cost.macs,
    }


Row = Mapping[str, float]
CURVES: dict[str, dict[str, tuple[str, str]]] = {
    "Loss": {"train/loss": ("training", "train/loss"), "val/loss": ("validation", "val/loss")},
    "Validation top-1": {"val/top1": ("raw", "val/top1"), "val/ema_top1": ("averaged", "val/ema_top1")},
    "Validation top-5": {"val/top5": ("raw", "val/top5"), "val/ema_top5": ("averaged", "val/ema_top5")},
}
"""By captions: for each column of `metrics.csv` the name of its curve."""


def training(epochs: Sequence[Row], steps: Sequence[Row]) -> tuple[Data, dict[str, Spec]]:
    """Losses, accuracies of raw and averaged weights, and the learning rate, over the epochs.

    Args:
        epochs: the rows of `metrics.csv`, at least one.
        steps: those of `steps.csv`.
    """
    length = epochs[-1]["step"] / (epochs[-1]["epoch"] + 1)  # steps of an epoch
    points = [
        (caption, series, row["epoch"] + 1, row[column])
        for caption, curves in CURVES.items()
        for column, (series, _) in curves.items()
        for row in epochs
        if column in row
    ]
    thin = steps[:: max(1, len(steps) // STEPS)] or epochs
    points += [("Learning rate", "training", row["step"] / length, row["lr"]) for row in thin if "lr" in row]
    columns = {name: [point[n] for point in points] for n, name in enumerate(("chart", "series", "epoch", "value"))}
    charts = {}
    for caption, group in groupby(points, key=lambda point: point[0]):
        encoding = x_y(
            "epoch",
            "value",
            ("epoch", caption.lower()),
            "",
            color=colour("series", SERIES, [point[1] for point in group]),
            tooltip=[*words("series"), *tip({"epoch": "epoch", "value": "value"})],
        )
        charts[caption] = {
            "transform": [{"filter": {"field": "chart", "equal": caption}}],
            "mark": {"type": "line", "point": len(epochs) <= 50 and caption != "Learning rate"},
            "encoding": encoding,
        }
    return Data(columns), charts


Curves = Mapping[str, Sequence[tuple[float, float]]]


def comparison(curves: Mapping[tuple[str, str], Curves]) -> tuple[Data, dict[str, Spec]]:
    """One line a run, such as its accuracy over the epochs.

    Args:
        curves: by the caption of a chart and the title of its x-axis, the points of each run by its name.
    """
    points = [
        (caption, run, *xy) for (caption, _), lines in curves.items() for run, line in lines.items() for xy in line
    ]
    columns = {name: [point[n] for point in points] for n, name in enumerate(("chart", "run", "x", "y"))}
    charts = {}
    for caption, x in curves:
        colours = {"field": "run", "type": "nominal", "title": None}
        shown = [*words("run"), *tip({"x": x, "y": "value"})]
        charts[caption] = {
            "transform": [{"filter": {"field": "chart", "equal": caption}}],
            "mark": {"type": "line", "interpolate": "step-after" if x == "evaluation" else "linear", "point": True},
            "encoding": x_y("x", "y", (x, ""), "~s" if x == "evaluation" else "", color=colours, tooltip=shown),
        }
    return Data(columns), charts
