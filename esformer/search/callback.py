"""What a search tells those who want to know, and what it gives back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from esformer.genotype import Genotype
from esformer.model.cost import Cost
from esformer.search.journal import Evaluation, Journal
from esformer.search.ranking import Scored
from esformer.search.schedule import Phase

if TYPE_CHECKING:
    from esformer.search.stage import SearchStage


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
        scores: what that phase's proxies give it.
        cost: what it costs.
        evaluations: how many there were.
        seconds: how long the search took, over all its sessions.
        journal: every evaluation.
    """

    genotype: Genotype
    scores: dict[str, float]
    cost: Cost
    evaluations: int
    seconds: float
    journal: Journal
