"""A family: of all that a search evaluated, the genotypes on the Pareto front of its guide against their cost."""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esformer.choices import size_of
from esformer.errors import ESFormerError
from esformer.files import write_text
from esformer.genotype import Genotype, notation
from esformer.guide import Guide
from esformer.search.callback import Search
from esformer.search.front import front
from esformer.search.journal import JournalError, read, read_header
from esformer.search.ranking import Ranking, Scored
from esformer.search.schedule import Phase, Schedule


@dataclass(frozen=True)
class Family:
    """What the guide of a search's last phase ranked, and the front of it.

    Args:
        cost: what the front is over: macs, params or latency_ms.
        guide: what ranked.
        costs: (N), of everything ranked.
        worths: (N), what the guide gives it.
        ranking: what gives it.
        members: (M), the front, from the cheapest to the dearest.
    """

    cost: str
    guide: Guide
    costs: np.ndarray
    worths: np.ndarray
    ranking: Ranking
    members: tuple[Scored, ...]

    def best(self, limit: float) -> Scored:
        """The genotype that the guide prizes most of those that cost no more than a limit.

        Args:
            limit: in the unit of the family's cost: MACs, parameters or milliseconds.

        Raises:
            ESFormerError: none costs so little.
        """
        within = [member for member in self.members if member.cost <= limit]
        if not within:
            least, most = (f"{member.cost:,.12g}" for member in (self.members[0], self.members[-1]))
            raise ESFormerError(
                f"nothing was found within {limit:,.12g} {self.cost}: the family goes from {least} to {most}"
            )
        return within[-1]

    def csv(self) -> str:
        """The front as a table: cost, scores, genotype."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        proxies = self.guide.proxies
        writer.writerow([self.cost, *(f"{p} (proxy)" if p == self.cost else p for p in proxies), "genotype"])
        for member in self.members:
            scores = (member.scores[proxy] for proxy in proxies)
            assert isinstance(member.genotype, Genotype)  # no other space is searched for a family
            writer.writerow([f"{member.cost:.12g}", *scores, notation(member.genotype)])
        return table.getvalue()


def read_family(journal: str | os.PathLike[str]) -> Family:
    """The family that a search found, from its journal alone.

    It is sought in the last phase; if all genes change there, in every phase like it too. In a decoupled search the
    phases before have other topologies, which have been bettered since.

    Args:
        journal: the file.

    Raises:
        JournalError: it is no journal, or of a search that was not for a family or has not come to its last phase.
    """
    schedule = Schedule(**read_header(journal)["schedule"])
    if schedule.family is None:
        raise JournalError(f"{journal} is of a search without search.family, which seeks the best genotype alone")
    sought_in = _sought_in(schedule)
    guide, phases = sought_in[0].guide, {phase.name for phase in sought_in}
    lines = [line for line in read(journal) if line.phase in phases]
    if not lines:
        raise JournalError(f"{journal} ends before the last phase; the command that began the search goes on")
    costs = np.array([getattr(line, schedule.family) for line in lines], dtype=float)
    ranking = Ranking(guide, lines)
    worths = np.array([ranking(line) for line in lines])
    members = tuple(
        Scored(Genotype.from_dict(lines[i].genotype), lines[i].scores, costs[i]) for i in front(costs, worths)
    )
    return Family(schedule.family, guide, costs, worths, ranking, members)


def _sought_in(schedule: Schedule) -> list[Phase]:
    last = schedule.steps()[-1]
    if last[0].genes != "all":
        return last
    return [phase for phase in schedule.phases() if (phase.genes, phase.guide) == (last[0].genes, last[0].guide)]


def write_family(family: Family, folder: Path, points: Sequence[float] = ()) -> dict[float, Path]:
    """Leave `front.csv`, and for each of some costs `family/COST.yaml`: the best genotype within it.

    Args:
        family: what was found.
        folder: where the files go.
        points: the costs.

    Raises:
        ESFormerError: nothing costs as little as a point; nothing is written.
    """
    best = {point: family.best(point) for point in points}
    write_text(folder / "front.csv", family.csv())
    files = {point: folder / "family" / f"{point_name(family.cost, point)}.yaml" for point in points}
    for point, file in files.items():
        file.parent.mkdir(exist_ok=True)
        facts = f"the best within {point:,.12g} {family.cost}: {best[point].cost:,.12g}"
        scores = ", ".join(f"{name} {score:.6g}" for name, score in best[point].scores.items())
        best[point].genotype.save(file, comment=f"{facts}\n{scores}")
    return files


def point_name(cost: str, point: float) -> str:
    """A cost in short, such as 200M or 3.5ms."""
    return f"{point:.12g}ms" if cost == "latency_ms" else f"{point / 1e6:.12g}M"


def references(stage: Search) -> dict[str, Scored]:
    """EfficientFormerV2 of the search's size as the guide sees it, where this is quickly known."""
    name, cost = size_of(stage.space.name.partition("-")[0]).reference, stage.schedule.family
    genotype = Genotype.shipped(name)
    measured = cost == "latency_ms" and stage.costs.predicted is None
    if cost is None or measured or (scores := stage.score(genotype)) is None:
        return {}  # a latency that is measured now compares with none that was measured then
    return {name: Scored(genotype, scores, stage.costs.of(genotype, cost))}
