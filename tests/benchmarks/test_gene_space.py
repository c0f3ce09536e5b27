"""Spaces made of genes, without a table and with one: what they draw, what that costs, and DARTS as one of them."""

import random

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from esformer import Budget, GeneSpace, Schedule, open_space, search
from esformer.benchmarks.architecture import GeneArchitecture
from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.darts import OPS, Darts
from esformer.benchmarks.darts_space import DartsSpace
from esformer.proxies import ProxyError, get
from tests.benchmarks.conftest import parameters
from tests.benchmarks.test_darts import DARTS_V2, P_DARTS, PC_DARTS


class Nets(GeneSpace):
    """Two convolutions; a kernel of 5 does not go with a width of 32."""

    name = "nets"
    genes = (("1", "3", "5"), ("3",), ("8", "16", "32"))
    group = ("topology", "topology", "size")
    img_size = 8

    def network(self, values):
        kernel, second, width = map(int, values)
        convs = [nn.Conv2d(3, width, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv2d(width, 4, second)]
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, self.num_classes))

    def is_valid(self, values):
        return (values[0], values[2]) != ("5", "32")


def plain(guide, length, **settings):
    return Schedule("evaluations", starts=1, start_length=length, total=length, start_proxy=guide, **settings)


@pytest.fixture
def write(tmp_path):
    def write(text, *dataset):
        (tmp_path / "t.csv").write_text(text)
        return Nets(tmp_path / "t.csv", *dataset)

    return write


def test_what_is_drawn_is_valid_and_everything_valid_is_drawn():
    space, rng = Nets(), random.Random(0)
    every = {f"{kernel}-3-{width}" for kernel in "135" for width in ("8", "16", "32")} - {"5-3-32"}
    drawn = [space.sample(rng).notation for _ in range(400)]
    assert {*drawn} == every and all(30 < drawn.count(one) < 75 for one in every)
    parent = GeneArchitecture("nets", "5-3-8")
    mutants = {space.mutate(parent, rng).notation for _ in range(200)}
    assert mutants == every - {"5-3-8"}
    assert {space.mutate(parent, rng, "size").notation for _ in range(50)} == {"5-3-16"}
    assert {space.mutate(parent, rng, "topology").notation for _ in range(50)} == {"1-3-8", "3-3-8"}
    changed = [space.mutate(parent, rng, most=1).notation for _ in range(50)]
    assert {*changed} == {"1-3-8", "3-3-8", "5-3-16"}
    other = GeneArchitecture("nets", "3-3-32")
    children = [space.crossover(parent, other, rng).notation for _ in range(100)]
    assert {*children} == {"5-3-8", "3-3-8", "3-3-32"}  # 5-3-32 is none: the first parent stands for it
    assert {space.crossover(parent, other, rng, "topology").notation for _ in range(50)} == {"5-3-8", "3-3-8"}


def test_costs_are_counted_on_the_network_and_the_cheapest_is_found_gene_by_gene():
    space = Nets()
    for notation in ("1-3-8", "5-3-16"):
        network = space.network(notation.split("-")).eval()
        counted = FlopCountAnalysis(network, torch.zeros(1, 3, 8, 8)).unsupported_ops_warnings(False)
        found = space.cost(GeneArchitecture("nets", notation))
        assert (found.params, found.macs) == (parameters(network), counted.uncalled_modules_warnings(False).total())
    assert space.cheapest(lambda one: space.cost(one).macs).notation == "1-3-8"
    assert space.cheapest(lambda one: -space.cost(one).params).notation == "3-3-32"


def test_a_search_without_a_table_needs_no_accuracies(tmp_path):
    space = Nets()
    found = search(space, Budget(params=1000), plain("naswot", 12, start_population=6), checkpoint=tmp_path / "j")
    assert found.cost.params <= 1000 and found.genotype in space and space.standing(found.genotype) is None
    phases = {"phase_length": 4, "total": 14, "topology_proxy": "macs", "size_proxy": "macs", "seeds": 1}
    both = Schedule("evaluations", 1, 6, 6, 2, start_proxy="-macs", **phases)
    journal = list(search(space, Budget(), both).journal)
    assert [line.phase for line in journal[::4]] == ["multi-start 1", "multi-start 1", "topology 1", "size 1"]
    widths = {line.genotype["architecture"].split("-")[2] for line in journal if line.phase == "topology 1"}
    kernels = {line.genotype["architecture"].split("-")[0] for line in journal if line.phase == "size 1"}
    assert len(widths) == len(kernels) == 1  # what one phase found, the next leaves as it is


def test_a_space_says_what_it_does_not_know():
    space = Nets()
    one = space.sample(random.Random(0))
    with pytest.raises(ProxyError, match="space nets does not say which operations its networks have"):
        space.score(get("sed"), one, seed=0)
    with pytest.raises(BenchmarkError, match="'5-3-7' is no architecture of nets; it must look like 1-3-8"):
        space.values("5-3-7")
    with pytest.raises(BenchmarkError, match="5-3-32 is no architecture of space nets"):
        space.mutate(GeneArchitecture("nets", "5-3-32"), random.Random(0))
    with pytest.raises(BenchmarkError, match="none of 1,000 architectures drawn from nets is valid"):
        type("Void", (Nets,), {"is_valid": lambda self, values: False})().sample(random.Random(0))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"genes": ()}, "space nets has no genes"),
        ({"genes": (("1",), ())}, r"gene 2 of space nets is \(\); it must be some words, all different"),
        ({"genes": ((1, 2),)}, r"gene 1 of space nets is \(1, 2\); it must be some words"),
        ({"genes": (("a", "a"),)}, "all different"),
        ({"group": ("size", "size")}, "topology or size, one for all its 3 genes or one for each"),
        ({"group": "topolgy"}, "the groups of space nets are 'topolgy'; they must be topology or size"),
    ],
)
def test_genes_from_which_nothing_can_be_drawn_are_refused(wrong, says):
    with pytest.raises(BenchmarkError, match=says):
        type("Wrong", (Nets,), wrong)()


def test_what_goes_wrong_in_a_network_is_said_of_its_architecture():
    class Broken(Nets):
        def network(self, values):
            if values[0] == "5":
                raise ValueError("no such kernel")
            return nn.Sequential(nn.Flatten(), nn.Linear(5, 10))

    space = Broken()
    built, scored = space.cost, lambda one: space.score(get("log_synflow"), one, 0)
    for notation, act, says in (
        ("5-3-8", built, "cannot be built or scored: ValueError: no such kernel .*test_gene_space.py, line"),
        ("5-3-8", scored, "cannot be built or scored: ValueError: no such kernel .*test_gene_space.py, line"),
        ("1-3-8", built, "cannot be built or scored: RuntimeError: .*shapes cannot be multiplied"),
        ("1-3-8", scored, "log_synflow cannot run this network .*shapes cannot be multiplied"),
    ):
        with pytest.raises(ProxyError, match=f"architecture {notation} of space nets:? {says}"):
            act(GeneArchitecture("nets", notation))
    with pytest.raises(BenchmarkError, match="space nets has no dataset 'cifar100' without a table"):
        Nets(None, "cifar100")


def test_a_score_is_a_function_of_architecture_and_seed():
    space = Nets()
    one, other = GeneArchitecture("nets", "3-3-8"), GeneArchitecture("nets", "3-3-16")
    scores = [space.score(get("log_synflow"), which, seed) for which in (one, other) for seed in (0, 1, 0)]
    assert scores[0] == scores[2] != scores[1] and scores[3] == scores[5] != scores[0]


def test_a_table_says_what_is_drawn_and_how_good_it_is(write):
    space = write("architecture,cifar100,accuracy\n3-3-8,40,60\n1-3-8,30,50\n5-3-32,50,99\n")
    assert space.name == "nets" and space.cardinality == 2
    found = search(space, Budget(), plain("accuracy", 10, start_population=4, start_tournament=2))
    assert found.genotype.notation == "3-3-8" and found.scores == {"accuracy": 60}
    assert str(space.standing(found.genotype)) == "60.00 %, rank 2 of 3; the best has 99.00 %, so the regret is 39.00"
    other = write("architecture,cifar100,accuracy\n3-3-8,40,60\n1-3-8,30,50\n", "cifar100")
    assert other.name == "nets/cifar100" and other.accuracy(GeneArchitecture("nets/cifar100", "1-3-8")) == 30
    assert len({space.digest, other.digest, Nets().digest}) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arch,accuracy\n3-3-8,60\n", "has no column architecture"),
        ("architecture,accuracy\n3-3-9,60\n", "architecture 1: '3-3-9' is no architecture of nets"),
        ("architecture,accuracy\n3-3-8,600\n", "it must be in percent"),
        ("architecture,accuracy\n3-3-8,6\n3-3-8,6\n", "is there twice"),
        ("architecture,accuracy\n3-3-8,0.6\n1-3-8,0.65\n", "no accuracy is above 1 %; they must be in percent"),
        ("architecture,accuracy\n5-3-32,60\n", "none of the architectures that the table of nets holds may be drawn"),
    ],
)
def test_a_wrong_table_is_refused(write, text, says):
    with pytest.raises(BenchmarkError, match=says):
        write(text)


@pytest.mark.parametrize("published", [DARTS_V2, PC_DARTS, P_DARTS])
def test_published_genotypes_are_of_the_darts_space(published, counted_as_built):
    space = DartsSpace()
    one = GeneArchitecture("darts", published)
    assert one in space and space.cost(one).params == Darts(36, 20).params(published)
    values = space.values(published)
    assert space.values(space.spell(values)) == values
    assert space.cost(one) == space.cost(GeneArchitecture("darts", space.spell(values)))
    child = space.mutate(one, random.Random(0))
    assert child in space and child != one and space.crossover(child, one, random.Random(0)) in space


def test_darts_costs_are_those_of_the_network():
    space, rng = DartsSpace(channels=4, layers=5), random.Random(0)
    for _ in range(4):
        one = space.sample(rng)
        network = space.network(space.values(one.notation)).eval()
        counted = FlopCountAnalysis(network, torch.zeros(1, 3, 32, 32)).unsupported_ops_warnings(False)
        found = space.cost(one)
        assert (found.params, found.macs) == (parameters(network), counted.uncalled_modules_warnings(False).total())


def test_every_gene_of_darts_is_drawn_and_none_is_not():
    space, rng = open_space("darts"), random.Random(0)
    genes = list(zip(*(space.values(space.sample(rng).notation) for _ in range(300)), strict=True))
    assert all({*drawn} == {*gene} for drawn, gene in zip(genes, space.genes, strict=True))
    assert space.cardinality == (7**8 * 1 * 3 * 6 * 10) ** 2
    same = DARTS_V2.replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', 0)", 1)
    for wrong in (DARTS_V2.replace("skip_connect", OPS[0], 1), same):
        with pytest.raises(BenchmarkError, match="is no genotype of this space"):
            space.values(wrong)
    with pytest.raises(BenchmarkError, match="space darts is searched without a table"):
        open_space("darts", "t.csv")
