"""SED against its equations, written down plainly and with as many digits as its sigmoids need."""

import itertools
import math
import random
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from mpmath import mpf
from torch import nn

from esformer.benchmarks.nats_bench import SizeSpace, TopologySpace
from esformer.genotype import ConvBlock, Genotype
from esformer.proxies import ProxyError, score
from esformer.proxies.sed import MANY, SED, of_module
from esformer.space import SearchSpace
from esformer.topology import Block, Topology

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(1000):  # the sigmoid of 1,000 lacks e^-1000 to one
        yield


def sig(x):
    return 1 / (1 + mpmath.exp(-mpf(x)))


def paper(topology):
    """Equations 1 to 5. The largest pooling decides which convolutions are large; one of no space makes all large."""
    total = mpf(0)
    for block in topology.blocks:
        large = sum(n for kernel, n in block.convs.items() if kernel >= (topology.largest_pool or 0))
        small = sum(n for kernel, n in block.convs.items() if kernel < (topology.largest_pool or 0))
        pools = sum((block.pools or {}).values())
        operations = large + small + pools + (block.skips or 0)
        skip_sed = 1 if block.skips is None else sig(block.skips) * block.skips
        conv_sed = sig(block.channels) * large
        pool_sed = 1 if block.pools is None else large**2 + operations**2 - (pools + small) ** 2
        total += sig(block.channels) * mpf(block.shrink) * pool_sed * sig(skip_sed * conv_sed)
    return total / len(topology.blocks)


def bound(topology):
    """What no architecture of the space exceeds: its blocks full of large convolutions, every sigmoid one, or full."""
    return sum(
        mpf(block.shrink)
        * (1 if block.pools is None else 2 * block.slots**2)
        * (sig(block.slots) if block.skips is None else 1)
        for block in topology.blocks
    ) / len(topology.blocks)


def agree(topology):
    sed, value = SED.values(topology)
    exact = paper(topology)
    assert float(sed) == pytest.approx(float(exact), rel=1e-12, abs=1e-300)
    assert float(value) == pytest.approx(float(-mpmath.log(bound(topology) - exact)), rel=1e-9, abs=1e-9)


def cell(ops, channels=16):
    """The topology of a cell of NATS-Bench; `none` is no operation."""
    return Topology(
        (Block(6, {3: ops.count("nor_conv_3x3"), 1: ops.count("nor_conv_1x1")}, {3: ops.count("avg_pool_3x3")},
               ops.count("skip_connect"), channels),), 3
    )  # fmt: skip


def widths(*channels, shrinks=()):
    """A topology of a space of sizes: the same operations everywhere."""
    shrinks = shrinks or [1] * len(channels)
    return Topology(tuple(Block(5, {3: 5}, channels=c, shrink=s) for c, s in zip(channels, shrinks, strict=True)))


CELLS = [cell(ops) for ops in itertools.combinations_with_replacement(OPS, 6)]  # order within a cell has no influence


def test_every_cell_of_the_topology_space_has_the_score_of_the_equations():
    assert len(CELLS) == 210
    for topology in CELLS:
        agree(topology)


def test_two_cells_worked_out_by_hand():
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    # five 3x3 convolutions and a skip: 25 + 36 - 0; three of them, a 1x1, a pooling and no operation: 9 + 25 - 4
    best = sigmoid(16) * 61 * sigmoid(sigmoid(1) * 5 * sigmoid(16))
    assert SED.values(cell(["nor_conv_3x3"] * 5 + ["skip_connect"]))[0] == pytest.approx(best, rel=1e-14)
    ops = ["nor_conv_3x3"] * 3 + ["nor_conv_1x1", "avg_pool_3x3", "none"]
    assert SED.values(cell(ops))[0] == pytest.approx(sigmoid(16) * 30 * 0.5, rel=1e-14)


def test_the_best_cell_is_five_3x3_convolutions_and_a_skip():
    scores = [float(SED.values(topology)[1]) for topology in CELLS]
    best = CELLS[int(np.argmax(scores))].blocks[0]
    assert (best.convs, best.pools, best.skips) == ({3: 5, 1: 0}, {3: 0}, 1)
    assert sum(value == max(scores) for value in scores) == 1
    assert int(np.argmax(scores)) == int(np.argmax([float(paper(topology)) for topology in CELLS]))


def test_cells_of_nats_bench_are_counted_as_here():
    rng = random.Random(0)
    benchmark = TopologySpace()
    for _ in range(20):
        a, b, c, d, e, f = ops = [rng.choice(OPS) for _ in range(6)]
        architecture = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
        assert score("sed", benchmark.topology(architecture)) == pytest.approx(float(SED.values(cell(ops))[1]))


def test_equations_hold_for_random_topologies():
    rng = random.Random(1)
    for _ in range(60):
        blocks = []
        pooled, skipping = rng.random() < 0.7, rng.random() < 0.7
        for _ in range(rng.randint(1, 4)):
            slots = rng.randint(1, 8)
            kinds = [rng.choice(["c1", "c3", "c5", "p", "s", "-"]) for _ in range(slots)]
            blocks.append(
                Block(
                    slots,
                    {1: kinds.count("c1"), 3: kinds.count("c3"), 5: kinds.count("c5")},
                    {3: kinds.count("p")} if pooled else None,
                    kinds.count("s") if skipping else None,
                    rng.choice([1, 3, 8, 16, 36]),
                    rng.choice([1, 4]),
                )
            )
        topology = Topology(tuple(blocks), 3 if pooled else None)
        if bound(topology) - paper(topology) > mpf(10) ** -12:  # spaces where the operations leave room
            agree(topology)


@pytest.mark.parametrize("kernel, large", [(1, False), (2, False), (3, True), (5, True)])
def test_a_convolution_as_large_as_the_largest_pooling_is_large(kernel, large):
    # beside it a pooling and a skip
    sed = SED.values(Topology((Block(3, {kernel: 1}, {2: 1}, 1, 16),), 3))[0]
    expected = (1 + 9 - 1) * sig(sig(1) * sig(16)) if large else (9 - 4) * mpf(0.5)
    assert sed == pytest.approx(float(sig(16) * expected))


def test_widths_are_told_apart_where_sigmoids_are_one():
    many = [8, 16, 24, 32, 37, 38, 40, 48, 56, 64, 128, 512, 520, 1000, 100_000]
    values = [SED.values(widths(c)) for c in many]
    assert len({float(sed) for sed, _ in values}) < len(many)  # as the paper defines it, it is one and the same
    scores = [float(value) for _, value in values]
    assert all(map(math.isfinite, scores)) and all(a < b for a, b in itertools.pairwise(scores))
    for c in many[:-1]:
        exact = float(-mpmath.log(bound(widths(c)) - paper(widths(c))))
        assert float(SED.values(widths(c))[1]) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("channels", [(8, 8, 8), (8, 16, 24), (64, 64, 64), (40, 56, 48), (1000, 1010, 1020)])
@pytest.mark.parametrize("i", range(3))
def test_a_score_grows_with_each_width(channels, i):
    wider = [c + 8 * (j == i) for j, c in enumerate(channels)]
    assert paper(widths(*channels)) < paper(widths(*wider))
    assert SED.values(widths(*channels))[1] < SED.values(widths(*wider))[1]


def test_the_score_has_the_order_of_sed_in_a_space_of_sizes():
    rng = random.Random(2)
    benchmark = SizeSpace()
    drawn = [[rng.choice(range(8, 65, 8)) for _ in range(5)] for _ in range(60)]
    topologies = [benchmark.topology(":".join(map(str, some))) for some in (*drawn, [8] * 5, [64] * 5)]
    exact = [paper(topology) for topology in topologies]
    scores = [float(SED.values(topology)[1]) for topology in topologies]
    for i, j in itertools.combinations(range(len(topologies)), 2):
        if exact[i] < exact[j]:
            assert scores[i] <= scores[j] + 1e-12 * abs(scores[j])
    deficits = [float(-mpmath.log(bound(t) - e)) for t, e in zip(topologies, exact, strict=True)]
    assert scores == pytest.approx(deficits, rel=1e-12)
    assert np.argmax(scores) == len(scores) - 1 and len(set(scores)) > 50


def test_arrays_of_counts_are_measured_one_by_one():
    def stacked(kind, key=None):
        held = [getattr(t.blocks[0], kind) for t in CELLS]
        return np.array([h[key] if key else h for h in held])

    many = Topology(
        (Block(6, {3: stacked("convs", 3), 1: stacked("convs", 1)}, {3: stacked("pools", 3)}, stacked("skips"), 16),), 3
    )
    seds, scores = SED.values(many)
    assert seds.tolist() == [float(SED.values(t)[0]) for t in CELLS]
    assert scores.tolist() == [float(SED.values(t)[1]) for t in CELLS]

    channels = np.array([8, 40, 64, 512])
    several = Topology(tuple(Block(5, {3: 5}, channels=c) for c in (channels, channels[::-1])))
    expected = [SED.values(widths(a, b))[1] for a, b in zip(channels, channels[::-1], strict=True)]
    assert SED.values(several)[1].tolist() == list(map(float, expected))


def test_a_space_without_poolings_or_skips_has_constants_in_their_place():
    sed, _ = SED.values(Topology((Block(1, {3: 1}, channels=2),)))
    assert sed == pytest.approx(float(sig(2) * sig(sig(2))))
    sed, _ = SED.values(Topology((Block(3, {3: 1}, None, 2, channels=2),)))
    assert sed == pytest.approx(float(sig(2) * sig(sig(2) * 2 * sig(2))))
    sed, _ = SED.values(Topology((Block(3, {3: 1, 1: 1}, {3: 1}, None, channels=2),), 3))
    assert sed == pytest.approx(float(sig(2) * (1 + 9 - 4) * sig(sig(2))))


def test_a_genotypes_kernels_have_no_influence_and_its_smallest_width_the_most():
    space = SearchSpace.for_size("S0")
    genotype = space.sample(random.Random(3))
    other = Genotype(
        genotype.space,
        tuple(
            tuple(replace(b, kernel=10 - b.kernel) if isinstance(b, ConvBlock) else b for b in stage)
            for stage in genotype.stages
        ),
    )
    kernels = [[b.kernel for b in g.blocks() if isinstance(b, ConvBlock)] for g in (genotype, other)]
    assert kernels[0] != kernels[1] and score("sed", genotype) == score("sed", other)
    assert all(math.isfinite(score("sed", space.sample(random.Random(seed)))) for seed in range(20))
    agree(Topology.of(genotype))

    smallest = [min(b.out for b in space.sample(random.Random(seed)).blocks()) for seed in range(40)]
    scores = [score("sed", space.sample(random.Random(seed))) for seed in range(40)]
    assert len(set(smallest)) > 2
    means = [np.mean([s for s, m in zip(scores, smallest, strict=True) if m == w]) for w in sorted(set(smallest))]
    assert means == sorted(means)
    assert scores == pytest.approx(smallest, abs=math.log(20))  # -log of the mean of about e^-width over 16 blocks


def network(*, convs, poolings, kernel=3):
    return nn.Sequential(
        *(nn.Conv2d(3, 3, kernel, padding=kernel // 2) for _ in range(convs)),
        *(nn.AvgPool2d(3, 1, 1) for _ in range(poolings)),
        nn.Identity(),
    )


def test_a_network_is_counted_as_one_block():
    counted = Topology((Block(MANY, {3: 2}, {3: 1}, None, 3),), 3)
    assert score("sed", network(convs=2, poolings=1)) == SED.values(counted)[1]
    counted = Topology((Block(MANY, {1: 2}, {3: 1}, None, 3),), 3)
    assert score("sed", network(convs=2, poolings=1, kernel=1)) == SED.values(counted)[1]
    # a window of 5 at stride 2 is as a pooling of 3, at stride (3, 3) as one of 2
    for stride, window in ((2, 3), ((3, 3), 2)):
        counted = Topology((Block(MANY, {2: 1}, {window: 1}, None, 3),), window)
        pooling = nn.MaxPool2d(5, stride)
        assert score("sed", nn.Sequential(nn.Conv2d(3, 3, 2), pooling)) == SED.values(counted)[1]


def test_networks_of_several_sizes_have_the_order_of_sed():
    networks = [network(convs=n, poolings=1) for n in (1, 3, 10)]
    seds = [float(SED.values(of_module(n))[0]) for n in networks]
    scores = [score("sed", n) for n in networks]
    assert seds == sorted(seds) and scores == sorted(scores)


def test_a_network_that_knows_its_topology_or_genotype_is_believed(draw):
    one = network(convs=1, poolings=0)
    for knows, what in (("topology", cell(["nor_conv_3x3"] * 6)), ("genotype", draw())):
        setattr(one, knows, what)
        assert score("sed", one) == score("sed", what)
        delattr(one, knows)


def test_a_network_without_poolings_or_convolutions_is_refused():
    with pytest.raises(ProxyError, match="no poolings.*Topology"):
        score("sed", network(convs=2, poolings=0))
    with pytest.raises(ProxyError, match="no convolutions"):
        score("sed", network(convs=0, poolings=2))
