"""Searches small enough for a test, and how to look at what they recorded."""

from dataclasses import replace

from esformer import search
from esformer.genotype import Genotype
from esformer.model.cost import Budget
from esformer.search.schedule import Schedule
from esformer.space import SearchSpace

SPACE = SearchSpace.for_size("S0")
BUDGET = Budget.for_size("S0")
SMALL = dict(start_population=8, start_tournament=3, population=10, tournament=4, seeds=3, starts=2, in_flight=4)
SHORT = Schedule(unit="evaluations", start_length=15, phase_length=14, total=80, **SMALL)
TINY = Schedule(unit="evaluations", start_length=9, phase_length=7, total=36, **SMALL)
MINUTES = Schedule(unit="minutes", start_length=1, phase_length=1, total=4, **SMALL)


def run(path=None, schedule=SHORT, seed=0, budget=BUDGET, **kwargs):
    return search(SPACE, budget, schedule, seed=seed, checkpoint=path, **kwargs)


def timeless(journal):
    """A journal but for the clock."""
    return [replace(evaluation, seconds=0, elapsed=0) for evaluation in journal]


def by_phase(journal):
    phases = {}
    for evaluation in journal:
        phases.setdefault(evaluation.phase, []).append(evaluation)
    return phases


def genotypes(evaluations):
    return [Genotype.from_dict(evaluation.genotype) for evaluation in evaluations]
