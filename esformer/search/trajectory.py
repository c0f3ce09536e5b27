"""What a search evaluated, in columns: small enough to keep all of it, quick enough to look at it now and then."""

import csv
import io
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from esformer.guide import Guide
from esformer.search.journal import Evaluation
from esformer.search.schedule import Phase

Column: TypeAlias = "array[Any]"
COSTS = ("params", "macs", "latency_ms")
"""What a budget may limit: the names that it and an evaluation have for it."""


@dataclass(frozen=True)
class PhaseRange:
    """A stretch of a search: one phase, or the populations of a multi-start that evolve side by side.

    Args:
        name: that of the phase, or what the names of several have in common.
        kind: multi-start, topology, size or joint.
        guide: what ranks in it.
        living: genotypes alive at a time, of all its populations together.
        start: its first evaluation, counted from 0.
        stop: the one after its last.
    """

    name: str
    kind: str
    guide: Guide
    living: int
    start: int
    stop: int

    @property
    def proxies(self) -> tuple[str, ...]:
        return self.guide.proxies

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


class Trajectory:
    """The evaluations of a search without their genotypes, 60 bytes each.

    Args:
        steps: the phases in order, those that run side by side together.
    """

    def __init__(self, steps: Sequence[Sequence[Phase]]) -> None:
        self._steps = steps
        self._step_of = {phase.name: number for number, step in enumerate(steps) for phase in step}
        self._phase_of = {name: number for number, name in enumerate(self._step_of)}
        self._origin_of: dict[str, int] = {}
        self._starts: list[tuple[int, int]] = []  # where each step that has begun starts
        self._last, self._timed = -1, False
        self._phase, self._origin = array("H"), array("B")
        self._costs: dict[str, Column] = {"params": array("q"), "macs": array("q"), "latency_ms": array("d")}
        self._clock: dict[str, Column] = {"seconds": array("d"), "elapsed": array("d")}
        proxies = dict.fromkeys(name for step in steps for phase in step for name in phase.proxies)
        self._scores: dict[str, Column] = {name: array("d") for name in proxies}

    def append(self, evaluation: Evaluation) -> None:
        step = self._step_of[evaluation.phase]
        if step != self._last:
            self._starts.append((step, len(self)))
            self._last = step
        self._phase.append(self._phase_of[evaluation.phase])
        self._origin.append(self._origin_of.setdefault(evaluation.origin, len(self._origin_of)))
        for proxy, scores in self._scores.items():
            scores.append(evaluation.scores.get(proxy, math.nan))
        self._costs["params"].append(evaluation.params)
        self._costs["macs"].append(evaluation.macs)
        if evaluation.latency_ms is not None:
            self._timed = True
        self._costs["latency_ms"].append(math.nan if evaluation.latency_ms is None else evaluation.latency_ms)
        self._clock["seconds"].append(evaluation.seconds)
        self._clock["elapsed"].append(evaluation.elapsed)

    def __len__(self) -> int:
        return len(self._phase)

    @property
    def proxies(self) -> tuple[str, ...]:
        return tuple(self._scores)

    @property
    def costs(self) -> tuple[str, ...]:
        """Those that were counted or measured."""
        return COSTS if self._timed else COSTS[:2]

    def scores(self, proxy: str, part: slice = slice(None)) -> np.ndarray:
        """A proxy's scores of all evaluations or some; NaN where others rank."""
        return np.array(self._scores[proxy][part])

    def column(self, name: str, part: slice = slice(None)) -> np.ndarray:
        """A cost, `seconds` or `elapsed` of all evaluations or some."""
        return np.array((self._costs | self._clock)[name][part])

    def spans(self) -> list[PhaseRange]:
        """The stretches of the search so far, in order."""
        stops = [start for _, start in self._starts[1:]] + [len(self)]
        return [
            self._span(self._steps[step], start, stop) for (step, start), stop in zip(self._starts, stops, strict=True)
        ]

    def last_span(self) -> PhaseRange:
        """The stretch that the newest evaluation is of."""
        step, start = self._starts[-1]
        return self._span(self._steps[step], start, len(self))

    @staticmethod
    def _span(step: Sequence[Phase], start: int, stop: int) -> PhaseRange:
        kind = step[0].name.rpartition(" ")[0]
        name = step[0].name if len(step) == 1 else kind
        return PhaseRange(name, kind, step[0].guide, sum(phase.population for phase in step), start, stop)

    def best(self, span: PhaseRange) -> np.ndarray:
        """For each evaluation of the span, the place in it of the best until then.

        A sum of proxies is on the scale that they have in the span; in the search itself it is that of the population.
        """
        worth = span.guide.worth({proxy: self.scores(proxy, span.slice) for proxy in span.proxies})
        better = worth[1:] > np.maximum.accumulate(worth)[:-1]
        places = np.arange(1, len(worth)) * better
        return np.maximum.accumulate(np.concatenate([[0], places]))

    def medians(self, span: PhaseRange, proxy: str, at: np.ndarray) -> np.ndarray:
        """The median score of the genotypes alive after each of some evaluations, counted within the span."""
        scores = self.scores(proxy, span.slice)
        return np.array([np.median(scores[max(0, i + 1 - span.living) : i + 1]) for i in at])

    def rate(self, last: int) -> float:
        """Evaluations a second, over the last ones; NaN where no time passed."""
        elapsed = self._clock["elapsed"]
        before = len(self) - 1 - last
        seconds = elapsed[-1] - (elapsed[before] if before >= 0 else 0.0)
        return min(last, len(self)) / seconds if seconds > 0 else math.nan

    def csv(self) -> str:
        """All evaluations as a table."""
        phases, origins = list(self._phase_of), list(self._origin_of)
        columns = {
            "evaluation": range(1, len(self) + 1),
            "phase": (phases[i] for i in self._phase),
            "origin": (origins[i] for i in self._origin),
            **{f"{p} (proxy)" if p in COSTS else p: _blank(scores) for p, scores in self._scores.items()},
            **{name: _blank(self._costs[name]) for name in self.costs},
            **self._clock,
        }
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return table.getvalue()


def _blank(column: Column) -> Iterator[float | None]:
    """The values, and nothing where there is none."""
    return (None if value != value else value for value in column)
