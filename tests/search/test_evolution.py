import random
from collections import Counter
from dataclasses import replace

import pytest

from esformer.choices import GROUPS
from esformer.guide import Guide
from esformer.model.cost import Budget, cost
from esformer.search import evolution
from esformer.search.evolution import Evolution, Offspring, Population
from esformer.search.ranking import Best, Ranking, Scored
from esformer.search.schedule import Phase
from esformer.space import SearchSpace

SPACE = SearchSpace.for_size("S0")
PHASE = Phase("topology 1", "topology", Guide.parse("proxy"), population=6, tournament=3, length=99, seeded=True)
GUIDE, SUM = Guide.parse("proxy"), Guide.parse("a + b", sum="largest")


def of_group(genotype, group):
    return [value for (_, gene), value in SPACE.values(genotype).items() if gene in GROUPS[group]]


def everything(genotype):
    return True


def scored(genotype, score):
    return Scored(genotype, {"proxy": score})


@pytest.fixture
def population(draw):
    """Eight genotypes; the score of each is its place."""
    population = Population(8, GUIDE)
    for seed in range(8):
        population.add(scored(draw("S0", seed), float(seed)))
    return population


def test_a_new_genotype_retires_the_oldest_however_good(draw):
    population = Population(3, GUIDE)
    for seed, score in [(0, 9.0), (1, 1.0), (2, 2.0), (3, 0.0)]:
        population.add(scored(draw("S0", seed), score))
    assert [one.scores["proxy"] for one in population.alive] == [1.0, 2.0, 0.0]


def test_a_tournament_of_all_gives_the_best_two(population, draw):
    assert population.tournament(8, random.Random(0)) == (draw("S0", 7), draw("S0", 6))
    assert population.tournament(99, random.Random(0)) == (draw("S0", 7), draw("S0", 6))


def test_a_tournament_draws_without_favour_and_without_repeating(population):
    rng = random.Random(0)
    drawn = [population.tournament(2, rng) for _ in range(1400)]
    rank = {one.genotype: one.scores["proxy"] for one in population.alive}
    assert all(rank[first] > rank[second] for first, second in drawn)
    pairs = Counter(drawn)
    assert len(pairs) == 28 and all(25 < n < 80 for n in pairs.values())  # 50 of each pair are expected


def test_a_tournament_of_one_genotype_gives_it_twice(draw):
    population = Population(5, GUIDE)
    population.add(scored(draw(), 1.0))
    assert population.tournament(3, random.Random(0)) == (draw(), draw())


@pytest.mark.parametrize("group", ["topology", "size", "all"])
def test_a_generation_is_two_mutations_and_a_crossover_of_the_best_two(population, draw, group):
    best, second = draw("S0", 7), draw("S0", 6)
    other = {"topology": "size", "size": "topology", "all": None}[group]
    for seed in range(20):
        offspring = evolution.generation(
            SPACE, population, replace(PHASE, genes=group, tournament=8), random.Random(seed), everything
        )
        assert [child.origin for child in offspring] == ["mutation", "mutation", "crossover"]
        assert offspring[0].genotype != best and offspring[1].genotype != second
        if other:
            for child, parent in zip(offspring, (best, second, best), strict=True):
                assert of_group(child.genotype, other) == of_group(parent, other)
        genes = zip(*(SPACE.values(g).values() for g in (offspring[2].genotype, best, second)), strict=True)
        assert all(gene in parents for gene, *parents in genes)


def test_without_crossover_and_with_one_gene_a_generation_is_plain(population, draw):
    phase = replace(PHASE, genes="all", tournament=8, mutated_genes=1, crossover=False)
    best, changed = SPACE.values(draw("S0", 7)), []
    for seed in range(60):
        offspring = evolution.generation(SPACE, population, phase, random.Random(seed), everything)
        assert [child.origin for child in offspring] == ["mutation", "mutation"]
        values = SPACE.values(offspring[0].genotype)
        changed.append([place for place in values if values[place] != best[place]])
    alone = [places[0][1] for places in changed if len(places) == 1]
    assert len(alone) > 30 and {"ffn", "kernel", "ratio"} <= {*alone}  # a width can take its neighbours along
    assert all({gene for _, gene in places} == {"out"} for places in changed if len(places) > 1)


def test_a_crossover_over_budget_is_left_out(population, draw):
    parents = {draw("S0", 7), draw("S0", 6)}
    phase = replace(PHASE, genes="all", tournament=8)
    offspring = evolution.generation(SPACE, population, phase, random.Random(0), lambda g: g in parents)
    # no mutation is allowed either, so that the parents stand in
    assert offspring == [Offspring(draw("S0", 7), "mutation"), Offspring(draw("S0", 6), "mutation")]


def test_mutations_and_samples_keep_the_budget():
    lowest = SPACE.cheapest(lambda g: cost(g).params)
    budget = Budget.for_size("S0")

    def allowed(genotype):
        return budget.allows(cost(genotype))

    rng = random.Random(0)
    samples = [evolution.sample(SPACE, rng, allowed, lowest) for _ in range(30)]
    assert len(set(samples)) == 30 and all(map(allowed, samples))
    mutants = [evolution.mutate(SPACE, parent, rng, replace(PHASE, genes="all"), allowed) for parent in samples]
    assert all(map(allowed, mutants)) and all(m != p for m, p in zip(mutants, samples, strict=True))


def test_samples_of_a_budget_that_all_fit_are_the_spaces_own():
    samples = [
        evolution.sample(SPACE, random.Random(seed), everything, SPACE.sample(random.Random(99))) for seed in (1, 2)
    ]
    assert samples == [SPACE.sample(random.Random(seed)) for seed in (1, 2)]


def test_without_seeds_the_first_generation_is_random(draw):
    phase = replace(PHASE, genes="all", population=20)
    first = list(evolution.first_generation(SPACE, [], phase, random.Random(0), everything, draw()))
    assert {child.origin for child in first} == {"sample"} and len({child.genotype for child in first}) == 20


def test_with_seeds_the_first_generation_is_they_and_mutations_of_them_in_turn(draw):
    seeds = [draw("S0", seed) for seed in range(3)]
    phase = replace(PHASE, population=11)
    first = list(evolution.first_generation(SPACE, seeds, phase, random.Random(0), everything, draw()))
    assert [child.origin for child in first] == ["seed"] * 3 + ["mutation"] * 8
    assert [child.genotype for child in first[:3]] == seeds
    parents = [of_group(child.genotype, "size") for child in first]
    assert parents == [of_group(seeds[i % 3], "size") for i in range(11)]
    phase = replace(PHASE, genes="size", population=2)
    more = list(evolution.first_generation(SPACE, seeds, phase, random.Random(0), everything, draw()))
    assert [child.genotype for child in more] == seeds[:2]


def test_several_proxies_rank_by_their_sum_each_divided_by_its_largest(draw):
    """FreeREA's rule: units do not matter, and the divisor is the population's, not the drawn ones'."""
    population = Population(4, SUM)
    scores = [(1.0, 1e6), (4.0, 1e6), (2.0, 4e6), (3.0, 2e6)]  # sums 0.5, 1.25, 1.5, 1.25
    for seed, (first, second) in enumerate(scores):
        population.add(Scored(draw("S0", seed), {"a": first, "b": second}))
    worth = Ranking(SUM, population.alive)
    assert [worth(one) for one in population.alive] == [0.5, 1.25, 1.5, 1.25]
    assert population.tournament(4, random.Random(0))[0] == draw("S0", 2)
    scaled = [Scored(one.genotype, {"a": one.scores["a"] * 1e9, "b": one.scores["b"]}) for one in population.alive]
    assert [Ranking(SUM, scaled)(one) for one in scaled] == [0.5, 1.25, 1.5, 1.25]


@pytest.mark.parametrize("text", ["a + b", "2*a - 0.5*b", "log(a) - log(b)", "-a"])
def test_a_ranking_is_what_the_guide_says_one_by_one(draw, text):
    rng = random.Random(0)
    population = [Scored(draw("S0", i), {"a": float(rng.randrange(9)), "b": rng.gauss(0, 1)}) for i in range(40)]
    for how in ("largest", "ranks") if "log" not in text else ("ranks",):
        guide = Guide.parse(text, how)
        worth = Ranking(guide, population)
        columns = {name: [one.scores[name] for one in population] for name in ("a", "b")}
        assert [worth(one) for one in population] == pytest.approx(guide.worth(columns).tolist())


def test_the_best_are_ranked_by_the_largest_of_all_that_were_seen(draw):
    best = Best(SUM, 2)
    for seed, (first, second) in enumerate([(1.0, 10.0), (2.0, 1.0), (10.0, 2.0), (1.0, 10.0)]):
        best.add(Scored(draw("S0", seed % 3), {"a": first, "b": second}))
    assert [one.genotype for one in best.ranking] == [draw("S0", 2), draw("S0", 0)]  # each genotype once


def test_an_evolution_breeds_only_when_its_first_generation_is_scored(draw):
    evolution = Evolution(PHASE, random.Random(0), SPACE, everything, draw(), [draw()], keep=3)
    asked = [evolution.ask() for _ in range(6)]
    assert [one.origin for one in asked] == ["seed"] + ["mutation"] * 5 and evolution.ask() is None
    for one in asked[:5]:
        evolution.tell(scored(one.genotype, 1.0), new=True)
        assert evolution.ask() is None
    evolution.tell(scored(asked[5].genotype, 2.0), new=False)
    assert evolution.stale == 1 and evolution.asked == 6
    assert [evolution.ask().origin for _ in range(6)] == ["mutation", "mutation", "crossover"] * 2
    assert evolution.best.ranking[0].genotype == asked[5].genotype


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("price", ["params", "macs"])
def test_the_cheapest_genotype_is(draw, price, extended):
    space = SearchSpace.for_size("S0", extended)

    def weigh(genotype):
        return getattr(cost(genotype), price)

    lowest = space.cheapest(weigh)
    assert all(weigh(lowest) < weigh(draw("S0", seed, extended)) for seed in range(100))
    values = space.values(lowest)
    for block in {index for index, _ in values}:  # no other genes of a block are cheaper, its width aside
        genes = [place for place in values if place[0] == block and place[1] != "out"]
        for seed in range(60):
            rng = random.Random(f"{block}/{seed}")
            other = space.build(values | {place: rng.choice(space.options[place]) for place in genes})
            assert weigh(other) >= weigh(lowest)
