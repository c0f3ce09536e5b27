"""What a search tells those who want to know, and what it gives back."""

from dataclasses import dataclass
from typing import Protocol

from lightning.fabric import Fabric

from esformer.model.cost import Budget, Cost
from esformer.search.costs import Costs
from esformer.search.journal import Evaluation, Journal
from esformer.search.ranking import Scored
from esformer.search.schedule import Phase, Schedule
from esformer.search.space import Architecture, Space


class Search(Protocol):
    """The search that is under way, as far as a callback may look at it: a `SearchStage`."""

    space: Space
    budget: Budget
    schedule: Schedule
    seed: int
    costs: Costs
    journal: Journal
    fabric: Fabric

    def cost(self, genotype: Architecture) -> Cost:
        """What a genotype costs."""

    def score(self, genotype: Architecture) -> dict[str, float] | None:
        """What the guide of the last phase gives a genotype; None if it looks at images that are not at hand."""


class SearchCallback:
    """What happens in a search, for those who want to know. A Lightning callback may be one too."""

    def on_search_start(self, stage: Search) -> None:
        """Before the first phase; what an earlier session left is in `stage.journal`."""

    def on_phase_start(self, stage: Search, phase: Phase) -> None:
        """Before a phase that is not wholly in the journal already."""

    def on_evaluation(self, stage: Search, evaluation: Evaluation) -> None:
        """After each new line of the journal."""

    def on_phase_end(self, stage: Search, phase: Phase, best: Scored) -> None:
        """After a phase, with the best that it found."""

    def on_search_end(self, stage: Search, result: "SearchResult") -> None:
        """After the last phase."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        genotype: the best of the last phase.
        scores: what that phase's proxies give it.
        cost: what it costs.
        evaluations: how many there were.
        seconds: how long the search took, over all its sessions.
        journal: every evaluation.
    """

    genotype: Architecture
    scores: dict[str, float]
    cost: Cost
    evaluations: int
    seconds: float
    journal: Journal
