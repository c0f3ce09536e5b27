"""The search stage: the phases of a schedule on Lightning Fabric, with callbacks and loggers as a Trainer has them."""

import os
import random
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor

from esformer.engine.executor import Executor, Future
from esformer.engine.start import executor_of_ranks
from esformer.errors import ESFormerError
from esformer.model.cost import Budget, Cost
from esformer.model.latency import Latency
from esformer.model.latency_fit import LatencyModel
from esformer.proxies import Proxy, get, registered
from esformer.proxies.cached_weights import forget_cached_weights
from esformer.search.batch import Batch
from esformer.search.callback import SearchCallback, SearchResult
from esformer.search.costs import Costs
from esformer.search.evolution import Evolution, Offspring
from esformer.search.front import spread
from esformer.search.journal import Evaluation, Journal, JournalError
from esformer.search.ranking import Ranking, Scored, front_of
from esformer.search.schedule import Phase, Schedule
from esformer.search.scorer import Measured, Scorer, Task
from esformer.search.space import Architecture, ScoredSpace, Space, check_scored

__all__ = ["SearchCallback", "SearchResult", "SearchStage", "search"]

STALE = 600
"""A phase that breeds nothing new for so many genotypes is over: the budget leaves it nothing to find."""


@dataclass(frozen=True)
class _Asked:
    """A genotype that was asked for: its line in the journal, or its scores when they are there."""

    evolution: Evolution
    offspring: Offspring
    line: Evaluation | None
    lacking: tuple[str, ...] = ()
    scores: Future[Measured] | None = None


class SearchStage:
    """A search by decoupled evolution (section 3.5) that can be killed at any moment and goes on where it was.

    The evolution is a pure function of its arguments and, if the schedule counts minutes, of the clock readings that
    the journal keeps. Always `schedule.in_flight` genotypes are being scored, and their scores are taken in the order
    in which they were asked for, whoever scores them. So the same seed finds the same genotype on any number of
    processes, and a resumed search runs the evolution again from the start, with the scores of the journal.

    Args:
        space: the genotypes to choose from.
        budget: what a genotype may cost.
        schedule: the phases.
        seed: of the evolution and of the proxies' random draws.
        img_size: pixels of the proxies' inputs; None for the smallest input that ranks as 224 does, proxy by proxy.
            Given images keep their own size; noise in their place has that of `cost_img_size` if this is None.
        draws: how many measurements a score is the mean of; None for as many as suffice there.
        cost_img_size: pixels of the images for which MACs are counted and latencies measured.
        num_classes: classes of the classifier whose parameters are counted.
        workers: processes that score on each rank; they do not change what is found, only how fast.
        images: B, 3, H, W, normalised, for proxies that look at a batch; None shows them noise.
        labels: the classes of the images, B.
        batch_size: how many images of noise there are.
        callbacks: SearchCallbacks; they are called on rank 0.
        loggers: Lightning loggers, for the callbacks to log to (as `callbacks.search.SearchLog` does).
        checkpoint: the journal's file; if it exists, the search goes on from it.
        latency: predicts latencies, from a table; None measures them where the budget or the family asks for them.
        fabric: a launched Fabric to run on instead of one process on the CPU (it brings its own callbacks and loggers).
            Every rank scores, rank 0 evolves.

    Raises:
        ESFormerError: no genotype fits the budget, or the schedule names a proxy that there is not.
        JournalError: the checkpoint is of another search.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        schedule: Schedule,
        seed: int = 0,
        img_size: int | None = None,
        draws: int | None = None,
        cost_img_size: int = 224,
        num_classes: int = 1000,
        workers: int = 1,
        images: Tensor | None = None,
        labels: Tensor | None = None,
        batch_size: int = 32,
        callbacks: Sequence[Any] = (),
        loggers: Iterable[Any] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        latency: LatencyModel | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        self.space, self.budget, self.schedule, self.seed = space, budget, schedule, seed
        self.img_size, self.draws = img_size, draws
        self.cost_img_size, self.num_classes = cost_img_size, num_classes
        self.workers, self.checkpoint, self.latency = workers, checkpoint, latency
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1, callbacks=list(callbacks), loggers=list(loggers))
        self._scored = space if isinstance(space, ScoredSpace) else None
        self._check()
        size, classes = img_size or cost_img_size, None
        if self._scored is not None:
            size, classes = self._scored.img_size, self._scored.num_classes
        self.batch = Batch.needed(self._proxies(), images, labels, batch_size, size, seed, classes)
        self.batch_facts = None if self.batch is None else self.batch.describe()
        self._began = 0.0
        self.costs = Costs(space, budget, cost_img_size, num_classes, str(self.fabric.device), self._timed, latency)
        self.journal = Journal(self.header())
        self._start(())

    def cost(self, genotype: Architecture) -> Cost:
        """What a genotype of this search costs."""
        return self.costs(genotype)

    def score(self, genotype: Architecture) -> dict[str, float] | None:
        """What the guide of the last phase gives a genotype; None if it looks at images that are not at hand."""
        if self.batch is None and self.batch_facts is not None:
            return None
        proxies = self.schedule.phases()[-1].proxies
        measured = self._scorer()(Task(proxies, genotype))
        return dict(zip(proxies, measured.scores, strict=True))

    def run(self) -> SearchResult:
        """Run all phases, or what is left of them.

        Raises:
            EngineError: a rank died, or workers died of a genotype again and again; the journal holds what was done.
        """
        try:
            return self._run()
        finally:
            forget_cached_weights()  # whatever comes next needs the memory

    def _run(self) -> SearchResult:
        executor = executor_of_ranks(self.fabric, self._scorer(), self.workers)
        if executor is None:  # rank 0 has the result
            return self.fabric.broadcast(None)  # type: ignore[return-value]
        done = False
        try:
            if self.checkpoint is not None:
                self.journal = Journal(self.header(), self.checkpoint, {phase.name for phase in self.schedule.phases()})
            result = self._search(executor)
            done = True
        finally:
            executor.shutdown(done)
        return result if self.fabric.world_size == 1 else self.fabric.broadcast(result)

    def _scorer(self) -> Scorer:
        foreign = registered(self._proxies())
        return Scorer(self.seed, self.img_size, self.draws, str(self.fabric.device), self.batch, foreign, self._scored)

    def replay(self) -> SearchResult:
        """The result of a finished search, from its journal alone; the callbacks are called at its start and end.

        Raises:
            JournalError: the search was not finished.
        """
        self.journal = Journal(self.header(), self.checkpoint, {phase.name for phase in self.schedule.phases()})
        return self._search(None)

    def header(self) -> dict[str, Any]:
        """What this search is, as plain containers: all that its result depends on."""
        header = {
            "space": self.space.name,
            "seed": self.seed,
            "img_size": self.img_size,
            "draws": self.draws,
            "cost_img_size": self.cost_img_size,
            "num_classes": self.num_classes,
            "budget": asdict(self.budget),
            "schedule": self.schedule.to_dict(),
        }
        header |= {} if self._scored is None else {"table": self._scored.digest}
        header |= {} if self.latency is None else {"latency": self.latency.to_dict()}
        return header if self.batch_facts is None else header | {"batch": self.batch_facts}

    def state_dict(self) -> dict[str, Any]:
        """The search so far, as plain containers."""
        latencies = {digest: asdict(latency) for digest, latency in self.journal.latencies.items()}
        evaluations = [asdict(evaluation) for evaluation in self.journal]
        return {"header": self.header(), "latencies": latencies, "evaluations": evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict` when run; not with a checkpoint file, which is a state of its own."""
        if self.checkpoint is not None:
            raise JournalError(f"this search goes on from its checkpoint file, {self.checkpoint}")
        if state["header"] != self.header():
            raise JournalError("the state is of another search")
        self.journal = Journal(self.header())
        for digest, latency in state["latencies"].items():
            self.journal.append_latency(digest, Latency(**latency))
        for evaluation in state["evaluations"]:
            self.journal.append(Evaluation(**evaluation))

    def _search(self, executor: Executor[Task, Measured] | None) -> SearchResult:
        self._start(self.journal)
        self.fabric.call("on_search_start", self)
        found: list[Scored] = []
        end = 0.0  # of each step as planned, so that what one takes too long does not add up
        for phases in self.schedule.steps():
            end += sum(phase.length for phase in phases)
            evolutions = [self._evolution(phase, found if phase.seeded else []) for phase in phases]
            self._evolve(executor, evolutions, end)
            best, guide = [scored for one in evolutions for scored in one.best.ranking], phases[0].guide
            ranked = sorted(best, key=Ranking(guide, best), reverse=True)
            found = front_of(guide, best) if self.schedule.family else ranked
        genotype = found[0].genotype
        price = self.cost(genotype)
        self.journal.check_place()  # before the callbacks write beside it
        result = SearchResult(genotype, found[0].scores, price, self._asked, self._elapsed, self.journal)
        self.fabric.call("on_search_end", self, result)
        return result

    def _evolution(self, phase: Phase, found: list[Scored]) -> Evolution:
        rng, schedule, costs = random.Random(f"{self.seed}/{phase.name}"), self.schedule, self.costs
        if schedule.family and found:
            places = spread([scored.cost for scored in reversed(found)], schedule.seeds)
            found = [found[-1 - place] for place in reversed(places)]
        seeds = [scored.genotype for scored in found]
        family = schedule.family is not None
        return Evolution(phase, rng, self.space, costs.allow, costs.cheapest, seeds, schedule.seeds, family)

    def _evolve(self, executor: Executor[Task, Measured] | None, evolutions: list[Evolution], end: float) -> None:
        """One step, up to the given minute or evaluation of the search."""
        asked: deque[_Asked] = deque()
        announced = False
        while True:
            while len(asked) < self.schedule.in_flight and (one := self._ask(executor, evolutions, end)):
                if one.line is None and not announced:  # the step is not wholly in the journal
                    for evolution in evolutions:
                        self.fabric.call("on_phase_start", self, evolution.phase)
                    announced = True
                asked.append(one)
            if not asked:
                break
            self._take(asked.popleft())
        if announced:
            for evolution in evolutions:
                self.fabric.call("on_phase_end", self, evolution.phase, evolution.best.ranking[0])

    def _ask(self, executor: Executor[Task, Measured] | None, evolutions: list[Evolution], end: float) -> _Asked | None:
        """Have the next genotype scored; None if the step is over or must wait for scores."""
        for evolution in sorted(evolutions, key=lambda evolution: evolution.asked):  # they take turns
            if self._over(evolution, end) or (offspring := evolution.ask()) is None:
                continue
            if (line := next(self._replay, None)) is not None:
                return _Asked(evolution, offspring, line)
            if executor is None:
                raise JournalError(
                    f"{self.journal.path} ends after {len(self.journal):,} evaluations: the search was not finished;"
                    " the command that began it goes on"
                )
            if not self._began:
                self._began = time.perf_counter()
            digest = offspring.genotype.digest
            lacking = tuple(p for p in evolution.phase.proxies if digest not in self._known[p])
            lacking = tuple(p for p in lacking if (p, digest) not in self._in_flight)
            self._in_flight |= {(proxy, digest) for proxy in lacking}
            scores = executor.submit(Task(lacking, offspring.genotype)) if lacking else None
            return _Asked(evolution, offspring, None, lacking, scores)
        return None

    def _over(self, evolution: Evolution, end: float) -> bool:
        if self.schedule.unit == "evaluations":
            return evolution.asked >= evolution.phase.length or evolution.stale >= STALE
        return evolution.asked > 0 and (self._elapsed >= end * 60 or evolution.stale >= STALE)

    def _take(self, asked: _Asked) -> None:
        """Wait for the scores of a genotype, put them on record and tell its evolution."""
        genotype, proxies, family = asked.offspring.genotype, asked.evolution.phase.proxies, self.schedule.family
        digest = genotype.digest
        new = any(digest not in self._known[proxy] for proxy in proxies)
        self._asked += 1
        if asked.line is not None:
            self._recall(asked, asked.line)
        measured = Measured((), 0.0) if asked.scores is None else asked.scores.result()
        for proxy, value in zip(asked.lacking, measured.scores, strict=True):
            self._known[proxy][digest] = value
            self._in_flight.remove((proxy, digest))
        scores = {proxy: self._known[proxy][digest] for proxy in proxies}
        if asked.line is None:
            self._record(asked, scores, measured.seconds)
        asked.evolution.tell(Scored(genotype, scores, self.costs.of(genotype, family) if family else 0.0), new)

    def _record(self, asked: _Asked, scores: dict[str, float], seconds: float) -> None:
        genotype, price = asked.offspring.genotype, self.cost(asked.offspring.genotype)
        # as the journal keeps it, for a resumed search must decide alike
        self._elapsed = round(self._resumed_at + time.perf_counter() - self._began, 4)
        latency = self.costs.latency_ms(genotype) if self._timed else None
        evaluation = Evaluation(
            self._asked,
            asked.evolution.phase.name,
            asked.offspring.origin,
            scores,
            price.params,
            price.macs,
            latency,
            round(seconds, 4),
            self._elapsed,
            genotype.to_dict(),
        )
        self.journal.append(evaluation)
        self.fabric.call("on_evaluation", self, evaluation)

    def _recall(self, asked: _Asked, line: Evaluation) -> None:
        """Take the scores from the journal."""
        genotype, phase = asked.offspring.genotype, asked.evolution.phase
        if (line.phase, tuple(line.scores), line.genotype) != (phase.name, phase.proxies, genotype.to_dict()):
            raise JournalError(
                f"evaluation {line.evaluation} of the journal is not the one that this search asks for there:"
                " another version of the search wrote it; choose another folder"
            )
        self._elapsed = self._resumed_at = line.elapsed
        for proxy, value in line.scores.items():
            self._known[proxy][genotype.digest] = value

    def _start(self, replay: Iterable[Evaluation]) -> None:
        """Everything as before the first evaluation."""
        self._replay: Iterator[Evaluation] = iter(replay)
        self._known: dict[str, dict[str, float]] = {proxy: {} for proxy in self.schedule.proxies()}
        self._in_flight: set[tuple[str, str]] = set()
        self._asked = 0
        self._elapsed = self._resumed_at = 0.0
        self._began = 0.0  # of this session, when it begins to score
        self.costs.keep_in(self.journal)

    def _proxies(self) -> list[str]:
        """What ranks in some phase and is no score that the space knows."""
        return [name for name in self.schedule.proxies() if name not in self._known_scores()]

    def _known_scores(self) -> Collection[str]:
        return () if self._scored is None else self._scored.scores

    @property
    def _timed(self) -> bool:
        """Whether latencies count."""
        return self.latency is not None or self.budget.latency_ms is not None or self.schedule.family == "latency_ms"

    def _check(self) -> None:
        for term in {term for phase in self.schedule.phases() for term in phase.guide.terms}:
            if term.proxy in self._known_scores():
                continue
            if not get(term.proxy).higher_is_better and term.weight > 0:
                raise ESFormerError(f"{term.proxy} is better when lower, and a search maximises: write -{term.proxy}")
        if self._scored is not None:
            check_scored(self._scored, self.schedule, self._timed)
        if self.workers < 1:
            raise ESFormerError(f"workers is {self.workers}; it must be at least 1")
        foreign: list[Proxy | ScoredSpace] = [*registered(self._proxies())]
        foreign += [] if self._scored is None else [self._scored]
        for known in foreign:
            if self.workers > 1 and type(known).__module__ == "__main__":
                raise ESFormerError(
                    f"{known.name} is defined in the program that runs, where workers cannot import it: put it into a"
                    " module of its own, or use one worker"
                )
        processes = self.workers * self.fabric.world_size
        if self._timed and self.latency is None and processes > 1 and self.fabric.device.type == "cpu":
            raise ESFormerError(
                f"a latency cannot be measured while {processes} processes score on the same CPU: use one worker"
            )


def search(
    space: Space,
    budget: Budget,
    schedule: Schedule,
    seed: int = 0,
    *,
    callbacks: Sequence[Any] = (),
    loggers: Iterable[Any] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> SearchResult:
    """Find the best genotype of a space within a budget: runs a SearchStage, whose arguments these are.

    Args:
        space: the genotypes to choose from.
        budget: what a genotype may cost.
        schedule: the phases.
        seed: of the evolution and of the proxies' random draws.
        callbacks: SearchCallbacks.
        loggers: Lightning loggers, for the callbacks to log to.
        checkpoint: the journal's file; if it exists, the search goes on from it.
        **settings: the other arguments of `SearchStage`.
    """
    stage = SearchStage(
        space, budget, schedule, seed, callbacks=callbacks, loggers=loggers, checkpoint=checkpoint, **settings
    )
    return stage.run()
