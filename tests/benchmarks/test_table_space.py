"""Tables as spaces: nothing outside is drawn, costs are the network's, and a search ends in a known regret."""

import random
from dataclasses import replace

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from esformer import Budget, Genotype, Schedule, cost, score, search
from esformer.benchmarks import get
from esformer.benchmarks.architecture import GeneArchitecture
from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.esformers import ESFormers, read_trainings, write_trainings
from esformer.benchmarks.space import TableSpace
from esformer.benchmarks.spaces import open_space
from esformer.errors import ESFormerError
from esformer.genotype import notation, parse
from esformer.model.cost import Cost
from esformer.proxies import get as proxy
from pipelines.runtime.scoring import Job, Scorer, Task
from tests.benchmarks.conftest import parameters

SPACES = ("nats-tss", "nats-sss", "channel-bench-resnet")
DATASETS = [(name, dataset) for name in SPACES for dataset in get(name).datasets]
TSS = "natsbench_tss_nb201.csv.gz"


def drawn(benchmark, rng):
    return benchmark.spell([rng.choice(gene) for gene in benchmark.genes])


@pytest.fixture
def sss(tmp_path):
    """A part of the size space, whose accuracies are made of its widths."""

    def sss(keep=300):
        benchmark, rng = get("nats-sss"), random.Random(0)
        rows = {drawn(benchmark, rng): None for _ in range(keep)}
        lines = [f"{row},{50 + sum(map(int, row.split(':'))) / 8}" for row in rows]
        (tmp_path / "sss.csv").write_text("\n".join(["arch,cifar10_test", *lines, ""]))
        return TableSpace(benchmark, tmp_path / "sss.csv")

    return sss


def batch():
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    return {"images": images, "labels": torch.arange(4)}


def plain(guide, length, **settings):
    return Schedule("evaluations", starts=1, start_length=length, total=length, start_proxy=guide, **settings)


@pytest.mark.parametrize(("name", "dataset"), DATASETS)
def test_costs_are_those_of_the_network(name, dataset):
    benchmark, rng = get(name), random.Random(1)
    images = benchmark.datasets[dataset]
    for _ in range(3):
        architecture = drawn(benchmark, rng)
        network = benchmark.network(architecture, dataset).eval()
        counted = FlopCountAnalysis(network, torch.zeros(1, 3, images.img_size, images.img_size))
        total = counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
        assert benchmark.macs(architecture, dataset) == total
        assert benchmark.params(architecture, dataset) == parameters(network)


@pytest.mark.parametrize("name", SPACES)
def test_genes_spell_the_architecture_that_has_them(name):
    benchmark, rng = get(name), random.Random(2)
    for _ in range(20):
        values = tuple(rng.choice(gene) for gene in benchmark.genes)
        assert benchmark.values(benchmark.spell(values)) == values
    with pytest.raises(BenchmarkError):
        benchmark.values("nothing")


def test_nothing_outside_the_table_is_drawn(sss):
    space, rng = sss(), random.Random(3)
    a, b = space.sample(rng), space.sample(rng)
    mutants = [space.mutate(a, rng) for _ in range(50)]
    children = [space.crossover(a, b, rng, genes="size") for _ in range(50)]
    assert all(one in space for one in (a, b, *mutants, *children)) and len({*mutants}) > 20
    assert all(mutant != a for mutant in mutants)
    lonely = sss(keep=1)
    only = lonely.sample(rng)
    assert lonely.mutate(only, rng) == only and lonely.cardinality == 1


def test_trained_esformers_are_a_space_whose_mutations_lead_to_the_nearest(tmp_path):
    space, rng = open_space("esformer"), random.Random(8)
    assert space.cardinality == len(ESFormers().read(ESFormers.shipped)) and space.groups == ("topology", "size")
    one = space.sample(rng)
    values = space.values(one.notation)
    assert space.spell(values) == one.notation and len(values) == len(space.genes)
    apart = sorted(sum(a != b for a, b in zip(values, space.values(other), strict=True)) for other in space._accuracies)
    near = {space.mutate(one, rng) for _ in range(200)}
    assert len(near) == 8 and one not in near
    found = [sum(a != b for a, b in zip(values, space.values(other.notation), strict=True)) for other in near]
    assert sorted(found) == apart[1:9]
    assert space.mutate(one, rng, most=1) in (one, *near)
    genotype = parse(one.notation)
    assert space.cost(one) == cost(genotype, 48, 10)
    assert space.score(proxy("naswot"), one, 3, **batch()) == score("naswot", genotype, 3, **batch())
    found = search(space, Budget(), plain("accuracy", 60)).genotype
    assert space.standing(found).rank == 1
    (line,) = [one for one in read_trainings(ESFormers.shipped) if one.drawn == "reference" and one.seed == 0]
    write_trainings(
        table := tmp_path / "t.csv", [line, replace(line, genotype=notation(Genotype.shipped("esformer_s1")))]
    )
    with pytest.raises(BenchmarkError, match=r"t\.csv: 'S1: .* is of space S1, not of S0"):
        open_space("esformer", table)


def test_networks_that_do_not_see_the_image_are_never_drawn_but_count_in_the_ranks(table):
    space, rng = TableSpace(get("nats-tss"), table(TSS)), random.Random(6)
    benchmark = space.benchmark
    connected = [drawn(benchmark, rng) for _ in range(300)]
    dead = [one for one in connected if not benchmark.is_connected(one)]
    for one in (*dead[:3], *(one for one in connected[:6] if one not in dead)):
        network = benchmark.network(one)  # its norms keep the signal alive
        outputs = network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        assert (outputs.std(0).max() < 1e-6) == (one in dead), one
    assert dead and space.cardinality == 15284 and space.standing(space.sample(rng)).among == 15625
    poor = benchmark.spell(["none", "none", "none", "none", "none", "nor_conv_3x3"])
    near = [space.mutate(GeneArchitecture(space.name, benchmark.spell(["nor_conv_3x3"] * 6)), rng) for _ in range(300)]
    assert not benchmark.is_connected(poor) and all(benchmark.is_connected(one.notation) for one in near)


def test_the_digest_is_of_what_the_table_says_in_whatever_order(tmp_path):
    head, *rows = "arch,cifar10_test", "8:8:8:8:8,90", "8:8:8:8:16,91", "8:8:8:8:24,80"
    digests = []
    for number, content in enumerate((rows, rows[::-1], rows[:2], [*rows[:2], "8:8:8:8:24,81"])):
        (tmp_path / f"{number}.csv").write_text("\n".join([head, *content, ""]))
        digests.append(TableSpace(get("nats-sss"), tmp_path / f"{number}.csv").digest)
    assert digests[0] == digests[1] and len({*digests}) == 3


def test_how_many_genes_change_is_uniform(table):
    space, rng = TableSpace(get("nats-tss"), table(TSS)), random.Random(4)
    parent = space.sample(rng)
    values = space.benchmark.values
    changed = [
        sum(a != b for a, b in zip(values(parent.notation), values(space.mutate(parent, rng).notation), strict=True))
        for _ in range(600)
    ]
    assert all(70 < changed.count(number) < 130 for number in range(1, 7))


def test_a_child_has_each_gene_of_one_parent(table):
    space, rng = TableSpace(get("nats-tss"), table(TSS)), random.Random(5)
    a, b = space.sample(rng), space.sample(rng)
    values = space.benchmark.values
    for _ in range(50):
        child = values(space.crossover(a, b, rng).notation)
        assert all(gene in pair for gene, *pair in zip(child, values(a.notation), values(b.notation), strict=True))


def test_with_the_accuracy_as_guide_the_evolution_comes_near_the_best(table):
    space = TableSpace(get("nats-tss"), table(TSS))
    found = [search(space, Budget(), plain("accuracy", 500), seed=seed).genotype for seed in range(3)]
    standings = [space.standing(one) for one in found]
    rng = random.Random(0)
    by_chance = [max(space.accuracy(space.sample(rng)) for _ in range(500)) for _ in range(3)]
    assert sum(s.accuracy for s in standings) >= sum(by_chance) and all(s.regret < 0.3 for s in standings)
    assert all(s.best == 94.3733 and s.among == 15625 for s in standings)


def test_the_standing_is_among_what_the_budget_allows(sss):
    space = sss()
    every = [space.sample(random.Random(seed)) for seed in range(300)]
    limit = sorted(space.cost(one).params for one in every)[100]
    found = search(space, Budget(params=limit), plain("accuracy", 200), seed=0)
    standing = space.standing(found.genotype, Budget(params=limit))
    assert found.cost == space.cost(found.genotype) and isinstance(found.cost, Cost) and found.cost.params <= limit
    assert standing.among < space.cardinality and standing.best < space.standing(found.genotype).best
    assert standing.regret == round(standing.best - space.accuracy(found.genotype), 6)


def test_equal_accuracies_share_a_rank(tmp_path):
    (tmp_path / "t.csv").write_text("arch,cifar10_test\n8:8:8:8:8,90\n8:8:8:8:16,90\n8:8:8:8:24,80\n8:8:8:8:32,95\n")
    space = TableSpace(get("nats-sss"), tmp_path / "t.csv")
    ranks = {space.accuracy(one): space.standing(one).rank for one in map(space.sample, map(random.Random, range(40)))}
    assert ranks == {95: 1, 90: 2, 80: 4}


def test_scores_are_those_of_correlate(sss):
    space = sss(keep=3)
    one = space.sample(random.Random(0))
    names = ("log_synflow", "sed", "parameters")
    scored = Scorer(Job("nats-sss", "cifar10", seed=5))(Task(one.notation, names))
    assert [space.score(proxy(name), one, seed=5) for name in names] == [score.score for score in scored]


@pytest.mark.nightly
def test_workers_find_what_one_process_finds(sss):
    space = sss(keep=40)
    schedule = plain("naswot", 8, start_population=4, start_tournament=2, in_flight=2)
    alone, together = (search(space, Budget(), schedule, batch_size=4, workers=n) for n in (1, 2))
    lines = [[(line.genotype, line.scores) for line in result.journal] for result in (alone, together)]
    assert lines[0] == lines[1] and len(lines[0]) == 8


@pytest.mark.parametrize(
    ("schedule", "budget", "says"),
    [
        (plain("accuracy", 8, family="macs"), Budget(), "without a family"),
        (plain("accuracy", 8), Budget(latency_ms=1), "without a latency in the budget"),
        (plain("accuracy", 8), Budget(params=10), "the cheapest has"),
        (Schedule("evaluations", starts=1, start_length=9, phase_length=9, total=18), Budget(), "size genes alone"),
    ],
)
def test_what_a_table_has_not_is_refused_before_the_search(sss, schedule, budget, says):
    with pytest.raises(ESFormerError, match=says):
        search(sss(), budget, schedule)


def test_a_benchmark_without_genes_and_a_group_that_there_is_not(sss):
    with pytest.raises(BenchmarkError, match="darts cannot be searched"):
        TableSpace(get("darts"), "t.csv")
    space = sss()
    with pytest.raises(BenchmarkError, match="has no topology genes; it has size genes"):
        space.mutate(space.sample(random.Random(0)), random.Random(0), genes="topology")
