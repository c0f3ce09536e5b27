import math

import pytest

from esformer.errors import ESFormerError
from esformer.search.schedule import Schedule


def test_the_papers_schedule_for_s0():
    phases = Schedule().phases()
    starts, rest = phases[:5], phases[5:]
    assert [phase.name for phase in starts] == [f"multi-start {i}" for i in range(1, 6)]
    assert {(p.genes, p.proxies, p.population, p.tournament, p.length, p.seeded) for p in starts} == {
        ("all", ("entropic_score",), 25, 5, 3, False)
    }
    assert [p.name for p in rest] == ["topology 1", "size 1", "topology 2", "size 2", "topology 3", "size 3"]
    assert [p.genes for p in rest] == ["topology", "size"] * 3
    assert [p.proxies for p in rest] == [("entropic_score",), ("log_synflow",)] * 3
    assert {(p.population, p.tournament, p.length, p.seeded) for p in rest} == {(50, 10, 5, True)}
    assert sum(p.length for p in phases) == 45


def test_the_populations_of_the_multi_start_evolve_side_by_side():
    steps = Schedule().steps()
    assert [len(step) for step in steps] == [5] + [1] * 6
    assert [phase for step in steps for phase in step] == Schedule().phases()


def test_without_decoupling_all_genes_change_in_every_phase():
    both = "entropic_score+log_synflow"
    phases = Schedule(start_proxy=both, joint_proxy=both).phases()
    assert [p.name for p in phases[5:]] == [f"joint {i}" for i in range(1, 7)]
    assert {(p.genes, p.proxies) for p in phases} == {("all", ("entropic_score", "log_synflow"))}


def test_the_papers_schedule_for_s2():
    phases = Schedule(phase_length=6, total=55).phases()
    assert [p.length for p in phases] == [3] * 5 + [6] * 6 + [4]  # the total cuts the last phase short
    assert [p.genes for p in phases[5:]] == ["topology", "size"] * 3 + ["topology"]


def test_the_same_schedule_in_evaluations():
    schedule = Schedule(unit="evaluations", starts=2, start_length=30, phase_length=40, total=170)
    assert [(p.name, p.length) for p in schedule.phases()] == [
        ("multi-start 1", 30), ("multi-start 2", 30), ("topology 1", 40), ("size 1", 40), ("topology 2", 30),
    ]  # fmt: skip


def test_the_multi_start_alone():
    assert [p.seeded for p in Schedule(total=15).phases()] == [False] * 5


def test_lengths_that_binary_fractions_miss_leave_no_phase_of_nothing():
    phases = Schedule(starts=1, start_length=0.1, phase_length=0.1, total=0.7).phases()
    assert len(phases) == 7 and sum(p.length for p in phases) == pytest.approx(0.7)


def test_a_sum_of_ranks_is_another_search_and_what_is_no_guide_is_refused():
    schedule = Schedule(start_proxy="log(naswot) + log(macs)", joint_proxy="naswot - 0.5*meco", sum="ranks")
    assert Schedule(**schedule.to_dict()) == schedule and "sum" not in Schedule().to_dict()
    assert {str(phase.guide) for phase in schedule.phases()} == {"log(naswot) + log(macs)", "naswot - 0.5*meco"}
    with pytest.raises(ESFormerError, match="sum is 'mean'; it must be largest or ranks"):
        Schedule(sum="mean")
    with pytest.raises(ESFormerError, match=r"size_proxy: 'naswot \+' must be a sum of different proxies"):
        Schedule(size_proxy="naswot +")
    with pytest.raises(ESFormerError, match=r"start_proxy: log\(naswot\) is the logarithm of a rank"):
        Schedule(start_proxy="log(naswot)")


def test_proxies_are_free_to_choose_and_names_are_unique():
    schedule = Schedule(start_proxy="a", topology_proxy="b", size_proxy="c", total=65)
    phases = schedule.phases()
    assert [p.proxies for p in phases] == [("a",)] * 5 + [("b",), ("c",)] * 5
    assert len({p.name for p in phases}) == len(phases)
    assert Schedule(**schedule.to_dict()) == schedule


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"unit": "hours"}, "unit is 'hours'"),
        ({"starts": 0}, "starts is 0"),
        ({"start_length": 0}, "start_length is 0"),
        ({"phase_length": -1}, "phase_length is -1"),
        ({"seeds": 0}, "seeds is 0"),
        ({"in_flight": 0}, "in_flight is 0"),
        ({"mutated_genes": 0}, "mutated_genes is 0; it must be above 0"),
        ({"mutated_genes": 1.5}, "mutated_genes is 1.5; it must be a whole number or null"),
        ({"tournament": 51}, "tournament is 51.*2 to the 50 of population"),
        ({"tournament": 1}, "tournament is 1"),
        ({"start_tournament": 26}, "start_tournament is 26.*25 of start_population"),
        ({"start_population": 1}, "start_tournament is 5.*the 1 of start_population"),
        ({"total": 14}, "total is 14.*multi-start alone takes 15"),
        ({"total": math.inf}, "total is inf"),
        ({"total": math.nan}, "total is nan"),
        ({"phase_length": math.nan}, "phase_length is nan"),
        ({"unit": "evaluations", "phase_length": 2.5}, "phase_length is 2.5"),
        ({"unit": "evaluations", "start_length": 0.5}, "start_length is 0.5"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Schedule(**wrong)
