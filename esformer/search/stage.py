"""The search stage: the phases of a schedule on Lightning Fabric, with callbacks and loggers as a Trainer has them."""

import os
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.fabric import Fabric

from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.model.cost import Budget, Cost, cost
from esformer.proxies import get, score
from esformer.search.evolution import Best, Offspring, Population, Scored, cheapest, first_generation, generation
from esformer.search.journal import Evaluation, Journal, JournalError
from esformer.search.schedule import Phase, Schedule
from esformer.space import SearchSpace

BATCH = 4
"""Genotypes of a first generation that are scored between two looks at the clock, whatever the number of ranks."""
STALE_GENERATIONS = 200
"""A phase that breeds nothing new for so many generations is over: the budget leaves it nothing to find."""


class SearchCallback:
    """What happens in a search, for those who want to know. A Lightning callback may be one too."""

    def on_search_start(self, stage: "SearchStage") -> None:
        """Before the first phase; what an earlier session left is in `stage.journal`."""

    def on_phase_start(self, stage: "SearchStage", phase: Phase) -> None:
        """Before a phase that is not wholly in the journal already."""

    def on_evaluation(self, stage: "SearchStage", evaluation: Evaluation) -> None:
        """After each new line of the journal."""

    def on_phase_end(self, stage: "SearchStage", phase: Phase, best: Scored) -> None:
        """After a phase, with the best that it found."""

    def on_search_end(self, stage: "SearchStage", result: "SearchResult") -> None:
        """After the last phase."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        genotype: the best of the last phase.
        score: what that phase's proxy gives it.
        cost: what it costs.
        evaluations: how many there were.
        seconds: how long the search took, over all its sessions.
        journal: every evaluation.
    """

    genotype: Genotype
    score: float
    cost: Cost
    evaluations: int
    seconds: float
    journal: Journal


class SearchStage:
    """A search by decoupled evolution (section 3.5) that can be killed at any moment and goes on where it was.

    The evolution is a pure function of its arguments and, if the schedule counts minutes, of the clock readings that
    the journal keeps. So a resumed search runs it again from the start, taking the scores it already knows from the
    journal, and every rank runs the same evolution; only the scoring is shared out.

    Args:
        space: the genotypes to choose from.
        budget: what a genotype may cost.
        schedule: the phases.
        seed: of the evolution and of the proxies' random draws.
        img_size: pixels of the proxies' inputs.
        cost_img_size: pixels of the images for which MACs are counted.
        num_classes: classes of the classifier whose parameters are counted.
        callbacks: SearchCallbacks.
        loggers: Lightning loggers; they get `search/...` after every evaluation.
        checkpoint: the journal's file; if it exists, the search goes on from it.
        fabric: a launched Fabric to run on instead of one process on the CPU (it brings its own callbacks and loggers).

    Raises:
        ESFormerError: no genotype fits the budget, or the schedule names a proxy that there is not.
        JournalError: the checkpoint is of another search.
    """

    def __init__(
        self,
        space: SearchSpace,
        budget: Budget,
        schedule: Schedule,
        seed: int = 0,
        img_size: int = 224,
        cost_img_size: int = 224,
        num_classes: int = 1000,
        callbacks: Sequence[Any] = (),
        loggers: Iterable[Any] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        self.space, self.budget, self.schedule, self.seed = space, budget, schedule, seed
        self.img_size, self.cost_img_size, self.num_classes = img_size, cost_img_size, num_classes
        self.checkpoint = checkpoint
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1, callbacks=list(callbacks), loggers=list(loggers))
        self.cheapest = self._cheapest()
        for phase in schedule.phases():
            proxy = get(phase.proxy)
            if not proxy.higher_is_better:
                raise ESFormerError(f"{proxy.name} is better when lower, and a search maximises")
            if proxy.needs == "batch":
                raise ESFormerError(f"{proxy.name} looks at real images, and a search has none; choose another proxy")
        self.journal = Journal(self._header())
        self._replay: list[Evaluation] = []
        self._known: dict[tuple[str, str], float] = {}
        self._asked = 0
        self._elapsed = self._resumed_at = self._began = 0.0

    def cost(self, genotype: Genotype) -> Cost:
        """What a genotype of this search costs."""
        return cost(genotype, self.cost_img_size, self.num_classes)

    def state_dict(self) -> dict[str, Any]:
        """The search so far, as plain containers."""
        return {"header": self._header(), "evaluations": [asdict(evaluation) for evaluation in self.journal]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict` when run; not with a checkpoint file, which is a state of its own."""
        if self.checkpoint is not None:
            raise JournalError(f"this search goes on from its checkpoint file, {self.checkpoint}")
        if state["header"] != self._header():
            raise JournalError("the state is of another search")
        self._replay = [Evaluation(**evaluation) for evaluation in state["evaluations"]]
        self.journal.recorded = list(self._replay)

    def run(self) -> SearchResult:
        """Run all phases, or what is left of them."""
        self._open_journal()
        self.fabric.call("on_search_start", self)
        found: list[Scored] = []
        end = 0.0  # of each phase as planned, so that what one takes too long does not add up
        for phase in self.schedule.phases():
            seeds = sorted(found, key=_score, reverse=True) if phase.seeded else []
            end += phase.length
            best = self._evolve(phase, [seed.genotype for seed in seeds], end)
            found = best if phase.seeded else found + best  # the multi-start's populations seed together
        best_of_all = max(found, key=_score)
        result = SearchResult(
            best_of_all.genotype,
            best_of_all.score,
            self.cost(best_of_all.genotype),
            self._asked,
            self._elapsed,
            self.journal,
        )
        self.fabric.call("on_search_end", self, result)
        return result

    def _evolve(self, phase: Phase, seeds: list[Genotype], end: float) -> list[Scored]:
        """One phase, up to the given minute or evaluation of the search; returns its best, the best first."""
        rng = random.Random(f"{self.seed}/{phase.name}")
        population, best = Population(phase.population), Best(self.schedule.seeds)
        stale, announced = 0, False

        def left() -> int:
            """How many more evaluations the phase may ask for now."""
            if self.schedule.unit == "evaluations":
                return round(end) - self._asked
            return BATCH if self._elapsed < end * 60 or not best.ranking else 0

        waiting = first_generation(self.space, seeds, phase.population, rng, phase.genes, self._allowed, self.cheapest)
        while left() > 0 and stale < STALE_GENERATIONS:
            offspring, waiting = waiting[:BATCH], waiting[BATCH:]
            if not offspring:
                offspring = generation(self.space, population, phase.tournament, rng, phase.genes, self._allowed)
            offspring = offspring[: left()]
            if not announced and self._asked + len(offspring) > len(self._replay):  # not all of it is replayed
                self.fabric.call("on_phase_start", self, phase)
                announced = True
            known = len(self._known)
            for scored in self._evaluate(phase, offspring):
                population.add(scored)
                best.add(scored)
            stale = 0 if len(self._known) > known or waiting else stale + 1
        if announced:
            self.fabric.call("on_phase_end", self, phase, best.ranking[0])
        return best.ranking

    def _evaluate(self, phase: Phase, offspring: list[Offspring]) -> list[Scored]:
        """Score the offspring, from the journal, from memory or on all ranks, and put them on record."""
        replayed = self._replay[self._asked : self._asked + len(offspring)]
        fresh = offspring[len(replayed) :]
        scored = [self._recall(phase, child, line) for child, line in zip(offspring, replayed, strict=False)]
        if fresh:
            seconds = self._score(phase.proxy, [child.genotype for child in fresh])
            self._elapsed = round(self._clock(), 4)  # as the journal keeps it, for a resumed search must decide alike
            scored += [self._record(phase, child, seconds.pop(child.genotype.digest, 0.0)) for child in fresh]
        return scored

    def _score(self, proxy: str, genotypes: list[Genotype]) -> dict[str, float]:
        """Add unknown genotypes' scores to the known ones; gives the seconds that each took, by its digest.

        Each rank scores every world_size-th of them.
        """
        unknown = {g.digest: g for g in genotypes if (proxy, g.digest) not in self._known}
        measured: Any = torch.zeros(2, len(unknown), dtype=torch.float64)
        for i, genotype in enumerate(unknown.values()):
            if i % self.fabric.world_size == self.fabric.global_rank:
                start = time.perf_counter()
                measured[0, i] = score(proxy, genotype, self.seed, self.img_size)
                measured[1, i] = time.perf_counter() - start
        if unknown and self.fabric.world_size > 1:
            measured = self.fabric.all_reduce(measured, reduce_op="sum")
        self._known |= {(proxy, digest): value for digest, value in zip(unknown, measured[0].tolist(), strict=True)}
        return dict(zip(unknown, measured[1].tolist(), strict=True))

    def _record(self, phase: Phase, child: Offspring, seconds: float) -> Scored:
        genotype, price = child.genotype, self.cost(child.genotype)
        value = self._known[phase.proxy, genotype.digest]
        self._asked += 1
        evaluation = Evaluation(
            self._asked,
            phase.name,
            child.origin,
            phase.proxy,
            value,
            price.params,
            price.macs,
            round(seconds, 4),
            self._elapsed,
            genotype.to_dict(),
        )
        self.journal.append(evaluation)
        line = {"evaluation": self._asked, phase.proxy: value, "params": price.params, "macs": price.macs}
        self.fabric.log_dict({f"search/{name}": float(number) for name, number in line.items()}, step=self._asked)
        self.fabric.call("on_evaluation", self, evaluation)
        return Scored(genotype, value)

    def _recall(self, phase: Phase, child: Offspring, line: Evaluation) -> Scored:
        if line.genotype != child.genotype.to_dict() or line.phase != phase.name or line.proxy != phase.proxy:
            raise JournalError(
                f"evaluation {line.evaluation} of the journal is not the one that this search asks for there:"
                " another version of the search wrote it; choose another folder"
            )
        self._asked += 1
        self._elapsed = line.elapsed
        self._known[line.proxy, child.genotype.digest] = line.score
        return Scored(child.genotype, line.score)

    def _allowed(self, genotype: Genotype) -> bool:
        return self.budget.allows(self.cost(genotype))

    def _clock(self) -> float:
        """Seconds of search, over all sessions, the same on all ranks."""
        now = self._resumed_at + time.perf_counter() - self._began
        return now if self.fabric.world_size == 1 else self.fabric.broadcast(now)

    def _open_journal(self) -> None:
        """The journal is rank 0's file; the other ranks keep a copy in memory."""
        if self.fabric.is_global_zero:
            self.journal = Journal(self._header(), self.checkpoint)
            self.journal.recorded = self.journal.recorded or list(self._replay)
        else:
            self.journal = Journal(self._header())
        self.journal.recorded = self.fabric.broadcast(self.journal.recorded)
        self._replay = list(self.journal.recorded)
        self._asked, self._elapsed, self._known = 0, 0.0, {}
        self._resumed_at = self._replay[-1].elapsed if self._replay else 0.0
        self._began = time.perf_counter()

    def _header(self) -> dict[str, Any]:
        return {
            "space": self.space.name,
            "seed": self.seed,
            "img_size": self.img_size,
            "cost_img_size": self.cost_img_size,
            "num_classes": self.num_classes,
            "budget": asdict(self.budget),
            "schedule": self.schedule.to_dict(),
        }

    def _cheapest(self) -> Genotype:
        """The cheapest genotype in terms of the budget, which must allow it."""
        limits = {name: limit for name, limit in asdict(self.budget).items() if limit is not None}

        def weigh(genotype: Genotype) -> float:
            price = self.cost(genotype)
            return max((getattr(price, name) / limit for name, limit in limits.items()), default=float(price.params))

        genotype = cheapest(self.space, weigh)
        if not self._allowed(genotype):
            price = self.cost(genotype)
            raise ESFormerError(
                f"no genotype of space {self.space.name} fits a budget of {self.budget}:"
                f" the cheapest has {price.params:,} params and {price.macs:,} macs"
            )
        return genotype


def search(
    space: SearchSpace,
    budget: Budget,
    schedule: Schedule,
    seed: int = 0,
    *,
    callbacks: Sequence[Any] = (),
    loggers: Iterable[Any] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> SearchResult:
    """Find the best genotype of a space within a budget: runs a SearchStage, whose arguments these are."""
    stage = SearchStage(
        space, budget, schedule, seed, callbacks=callbacks, loggers=loggers, checkpoint=checkpoint, **settings
    )
    return stage.run()


def _score(scored: Scored) -> float:
    return scored.score
