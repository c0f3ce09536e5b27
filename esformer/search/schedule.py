"""The phases of a search (section 3.5) and what drives each: a multi-start, then topology and size in turn."""

import math
from dataclasses import dataclass, fields
from typing import Any

from esformer.choices import Group
from esformer.errors import ESFormerError
from esformer.guide import SUMS, Guide

MAX_PHASES = 10_000
MOST = {"starts": 1000, "in_flight": 10_000, "start_population": 2**31, "population": 2**31, "seeds": 2**31}
"""Of the settings that count."""
COSTS = ("macs", "params", "latency_ms")
"""What a family may be spread over."""
UNCHANGED = (("family", None), ("sum", "largest"), ("mutated_genes", None), ("crossover", True))
"""Settings that older journals lack, and the values with which a search is the one that it was."""


@dataclass(frozen=True)
class Phase:
    """One evolution: which genes change, which proxy ranks, and for how long.

    Args:
        name: such as `multi-start 3`, `topology 1` or `size 2`; unique in a search.
        genes: the group of genes that change.
        guide: the proxy that ranks, or the sum of several, on the scale that they have in the population.
        population: genotypes alive at a time.
        tournament: genotypes drawn to find parents among.
        length: how long it lasts, in the unit of its schedule.
        seeded: starts from the best of what came before, not at random.
        mutated_genes: the most that a mutation changes; None for all of the group.
        crossover: whether parents are crossed too.
    """

    name: str
    genes: Group
    guide: Guide
    population: int
    tournament: int
    length: float
    seeded: bool
    mutated_genes: int | None = None
    crossover: bool = True

    @property
    def proxies(self) -> tuple[str, ...]:
        """The names of the guide's proxies."""
        return self.guide.proxies


@dataclass
class Schedule:
    """How a search goes (section 3.5). The defaults are the paper's for S0 and S1.

    A proxy may be a sum of several, such as `entropic_score + log_synflow` or `naswot - 0.5*meco`.

    Raises:
        ESFormerError: a setting is not what it can be.

    Examples:
        >>> [phase.name for step in Schedule(starts=2, total=16).steps() for phase in step]
        ['multi-start 1', 'multi-start 2', 'topology 1', 'size 1']
    """

    unit: str = "minutes"
    """What the lengths below are counted in: `minutes` (the paper's) or `evaluations` (exactly reproducible)."""
    starts: int = 5
    """Populations of the multi-start, each evolved by itself from random genotypes."""
    start_length: float = 3
    """How long each of them evolves."""
    start_population: int = 25
    """Genotypes in a population of the multi-start."""
    start_tournament: int = 5
    """Tournament size of the multi-start."""
    phase_length: float = 5
    """How long a topology or a size phase lasts."""
    total: float = 45
    """The whole search, multi-start included; the last phase ends early if it must."""
    population: int = 50
    """Genotypes in the population of a topology or a size phase."""
    tournament: int = 10
    """Tournament size of a topology or a size phase."""
    seeds: int = 10
    """The best of each population of one step that seed the next; mutations of them fill its population."""
    start_proxy: str = "entropic_score"
    """The proxy that ranks in the multi-start, where all genes change."""
    topology_proxy: str = "entropic_score"
    """The proxy that ranks in topology phases, where FFN kinds, kernels and heads change."""
    size_proxy: str = "log_synflow"
    """The proxy that ranks in size phases, where widths, expansion ratios and head dimensions change."""
    joint_proxy: str | None = None
    """If set, topology and size are not decoupled (Table 5): in all phases after the multi-start all genes change, and
    this proxy ranks."""
    sum: str = "largest"
    """How several proxies are summed: `largest` divides each by its largest value in the population (FreeREA), `ranks`
    sums their ranks in it (AZ-NAS, with `log()` around each)."""
    mutated_genes: int | None = None
    """The most genes that a mutation changes: how many is drawn from 1 to that; null for any number of them (the
    paper's several mutations at once)."""
    crossover: bool = True
    """Beside a mutation of each of its best two, a tournament breeds their crossover."""
    in_flight: int = 16
    """Genotypes that are being scored while the next are bred. A search by evaluations finds the same genotype on any
    number of workers up to about this many; another number is another search."""
    family: str | None = None
    """`macs`, `params` or `latency_ms`: the search is then for the Pareto front of the guide against this cost, so for
    the best network at every cost within the budget. Tournaments are won by NSGA-II's order, and `seeds` genotypes
    spread over the front seed the next phase."""

    def __post_init__(self) -> None:
        for field in fields(Schedule):  # a journal's header may hold anything
            if field.type is int and type(value := getattr(self, field.name)) is not int:
                raise ESFormerError(f"{field.name} is {value!r}; it must be a whole number")
        if self.unit not in ("minutes", "evaluations"):
            raise ESFormerError(f"unit is {self.unit!r}; it must be minutes or evaluations")
        if self.family not in (None, *COSTS):
            raise ESFormerError(f"family is {self.family!r}; it must be {', '.join(COSTS)} or null")
        if self.sum not in SUMS:
            raise ESFormerError(f"sum is {self.sum!r}; it must be {' or '.join(SUMS)}")
        for name in ("start_proxy", "topology_proxy", "size_proxy", "joint_proxy"):
            if (text := getattr(self, name)) is not None:
                try:
                    self._guide(text)
                except ESFormerError as error:
                    raise ESFormerError(f"{name}: {error}") from None
        if self.mutated_genes is not None and type(self.mutated_genes) is not int:
            raise ESFormerError(f"mutated_genes is {self.mutated_genes!r}; it must be a whole number or null")
        for name in ("starts", "start_length", "phase_length", "seeds", "in_flight", "mutated_genes"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ESFormerError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ESFormerError(f"{name} is {getattr(self, name)}; it must be at most {most}")
        for prefix in ("start_", ""):
            population, tournament = getattr(self, f"{prefix}population"), getattr(self, f"{prefix}tournament")
            if not 2 <= tournament <= population:
                raise ESFormerError(
                    f"{prefix}tournament is {tournament}; it must be from 2 to the {population} of {prefix}population"
                )
        if (self.total - self.starts * self.start_length) / self.phase_length > MAX_PHASES:
            raise ESFormerError(
                f"total is {self.total}; at {self.phase_length} each that is more than {MAX_PHASES} phases"
            )
        for name in ("start_length", "phase_length", "total"):
            if self.unit == "evaluations" and getattr(self, name) % 1:
                raise ESFormerError(f"{name} is {getattr(self, name)}; evaluations are counted in whole numbers")
        if not self.starts * self.start_length <= self.total < math.inf:
            alone = f"the multi-start alone takes {self.starts * self.start_length:g}, starts times start_length"
            raise ESFormerError(f"total is {self.total:g}; {alone}")

    def steps(self) -> list[list[Phase]]:
        """The phases in order; those of one step, the populations of the multi-start, evolve side by side."""
        small, large = (self.start_population, self.start_tournament), (self.population, self.tournament)
        start, bred = self._guide(self.start_proxy), (self.mutated_genes, self.crossover)
        starts = [
            Phase(f"multi-start {i + 1}", "all", start, *small, self.start_length, False, *bred)
            for i in range(self.starts)
        ]
        steps = [starts]
        turns: list[tuple[Group, str]] = [("topology", self.topology_proxy), ("size", self.size_proxy)]
        if self.joint_proxy is not None:
            turns = [("all", self.joint_proxy)]
        left = self.total - self.starts * self.start_length
        while left > 1e-9:
            cycle, turn = divmod(len(steps) - 1, len(turns))
            genes, proxy = turns[turn]
            name = "joint" if genes == "all" else genes
            length = min(self.phase_length, left)
            steps.append([Phase(f"{name} {cycle + 1}", genes, self._guide(proxy), *large, length, True, *bred)])
            left -= length
        return steps

    def phases(self) -> list[Phase]:
        """Every phase in order."""
        return [phase for step in self.steps() for phase in step]

    def proxies(self) -> list[str]:
        """The names of all proxies that rank in some phase, sorted."""
        return sorted({name for phase in self.phases() for name in phase.proxies})

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as the journal keeps them; without what was added since, where it changes nothing."""
        settings = {field.name: getattr(self, field.name) for field in fields(Schedule)}
        return {name: value for name, value in settings.items() if (name, value) not in UNCHANGED}

    def _guide(self, text: str) -> Guide:
        return Guide.parse(text, self.sum)
