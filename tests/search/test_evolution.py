import random
from collections import Counter

import pytest

from esformer.choices import GROUPS
from esformer.model.cost import Budget, cost
from esformer.search import evolution
from esformer.search.evolution import Offspring, Population, Scored
from esformer.space import SearchSpace

SPACE = SearchSpace.for_size("S0")


def of_group(genotype, group):
    return [value for (_, gene), value in SPACE.values(genotype).items() if gene in GROUPS[group]]


def everything(genotype):
    return True


@pytest.fixture
def population(draw):
    """Eight genotypes; the score of each is its place."""
    population = Population(8)
    for seed in range(8):
        population.add(Scored(draw("S0", seed), float(seed)))
    return population


def test_a_new_genotype_retires_the_oldest_however_good(draw):
    population = Population(3)
    for seed, score in [(0, 9.0), (1, 1.0), (2, 2.0), (3, 0.0)]:
        population.add(Scored(draw("S0", seed), score))
    assert [scored.score for scored in population.alive] == [1.0, 2.0, 0.0]


def test_a_tournament_of_all_gives_the_best_two(population, draw):
    assert population.tournament(8, random.Random(0)) == (draw("S0", 7), draw("S0", 6))
    assert population.tournament(99, random.Random(0)) == (draw("S0", 7), draw("S0", 6))


def test_a_tournament_draws_without_favour_and_without_repeating(population):
    rng = random.Random(0)
    drawn = [population.tournament(2, rng) for _ in range(1400)]
    rank = {scored.genotype: scored.score for scored in population.alive}
    assert all(rank[first] > rank[second] for first, second in drawn)
    pairs = Counter(drawn)
    assert len(pairs) == 28 and all(25 < n < 80 for n in pairs.values())  # 50 of each pair are expected


def test_a_tournament_of_one_genotype_gives_it_twice(draw):
    population = Population(5)
    population.add(Scored(draw(), 1.0))
    assert population.tournament(3, random.Random(0)) == (draw(), draw())


@pytest.mark.parametrize("group", ["topology", "size", "all"])
def test_a_generation_is_two_mutations_and_a_crossover_of_the_best_two(population, draw, group):
    best, second = draw("S0", 7), draw("S0", 6)
    other = {"topology": "size", "size": "topology", "all": None}[group]
    for seed in range(20):
        offspring = evolution.generation(SPACE, population, 8, random.Random(seed), group, everything)
        assert [child.origin for child in offspring] == ["mutation", "mutation", "crossover"]
        assert offspring[0].genotype != best and offspring[1].genotype != second
        if other:
            for child, parent in zip(offspring, (best, second, best), strict=True):
                assert of_group(child.genotype, other) == of_group(parent, other)
        genes = zip(*(SPACE.values(g).values() for g in (offspring[2].genotype, best, second)), strict=True)
        assert all(gene in parents for gene, *parents in genes)


def test_a_crossover_over_budget_is_left_out(population, draw):
    parents = {draw("S0", 7), draw("S0", 6)}
    offspring = evolution.generation(SPACE, population, 8, random.Random(0), "all", lambda g: g in parents)
    # no mutation is allowed either, so that the parents stand in
    assert offspring == [Offspring(draw("S0", 7), "mutation"), Offspring(draw("S0", 6), "mutation")]


def test_mutations_and_samples_keep_the_budget():
    lowest = evolution.cheapest(SPACE, lambda g: cost(g).params)
    budget = Budget.for_size("S0")

    def allowed(genotype):
        return budget.allows(cost(genotype))

    rng = random.Random(0)
    samples = [evolution.sample(SPACE, rng, allowed, lowest) for _ in range(30)]
    assert len(set(samples)) == 30 and all(map(allowed, samples))
    mutants = [evolution.mutate(SPACE, parent, rng, "all", allowed) for parent in samples]
    assert all(map(allowed, mutants)) and all(m != p for m, p in zip(mutants, samples, strict=True))


def test_samples_of_a_budget_that_all_fit_are_the_spaces_own():
    samples = [
        evolution.sample(SPACE, random.Random(seed), everything, SPACE.sample(random.Random(99))) for seed in (1, 2)
    ]
    assert samples == [SPACE.sample(random.Random(seed)) for seed in (1, 2)]


def test_without_seeds_the_first_generation_is_random(draw):
    first = evolution.first_generation(SPACE, [], 20, random.Random(0), "all", everything, draw())
    assert {child.origin for child in first} == {"sample"} and len({child.genotype for child in first}) == 20


def test_with_seeds_the_first_generation_is_they_and_mutations_of_them_in_turn(draw):
    seeds = [draw("S0", seed) for seed in range(3)]
    first = evolution.first_generation(SPACE, seeds, 11, random.Random(0), "topology", everything, draw())
    assert [child.origin for child in first] == ["seed"] * 3 + ["mutation"] * 8
    assert [child.genotype for child in first[:3]] == seeds
    parents = [of_group(child.genotype, "size") for child in first]
    assert parents == [of_group(seeds[i % 3], "size") for i in range(11)]
    more = evolution.first_generation(SPACE, seeds, 2, random.Random(0), "size", everything, draw())
    assert [child.genotype for child in more] == seeds[:2]


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("price", ["params", "macs"])
def test_the_cheapest_genotype_is(draw, price, extended):
    space = SearchSpace.for_size("S0", extended)

    def weigh(genotype):
        return getattr(cost(genotype), price)

    lowest = evolution.cheapest(space, weigh)
    assert all(weigh(lowest) < weigh(draw("S0", seed, extended)) for seed in range(100))
    values = space.values(lowest)
    for block in {index for index, _ in values}:  # no other genes of a block are cheaper, its width aside
        genes = [place for place in values if place[0] == block and place[1] != "out"]
        for seed in range(60):
            rng = random.Random(f"{block}/{seed}")
            other = space.build(values | {place: rng.choice(space.options[place]) for place in genes})
            assert weigh(other) >= weigh(lowest)
