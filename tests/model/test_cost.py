import logging
import math
import random
import time

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from esformer.genotype import Genotype
from esformer.model.cost import Budget, Cost, cost, paper_macs
from esformer.model.esformer import ESFormer
from esformer.space import SearchSpace

logging.getLogger("fvcore").setLevel(logging.ERROR)
aten = torch.ops.aten
IMAGES = (224, 97, (64, 160), 33)
EVERY_SIZE = pytest.mark.parametrize(
    "size", ["S0", *(pytest.param(size, marks=pytest.mark.nightly) for size in ("S1", "S2"))]
)


class Counter(TorchDispatchMode):
    """MACs by fvcore's rules, of the operations that run; without its tracing, which takes ten times as long."""

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        if op is aten.convolution:
            self.macs += out.numel() * args[1][0].numel()
        elif op is aten.bmm:
            self.macs += out.numel() * args[0].shape[2]
        elif op is aten.addmm:
            self.macs += out.numel() * args[1].shape[1]
        elif op is aten.native_batch_norm:
            self.macs += 2 * out[0].numel()
        elif op is aten.upsample_bilinear2d:
            self.macs += 4 * out.numel()
        return out


@pytest.fixture(autouse=True)
def _no_initialisation(monkeypatch):
    monkeypatch.setattr(nn.modules.conv._ConvNd, "reset_parameters", lambda self: None)  # half the time to build


def build(genotype, img_size, **kwargs):
    network = ESFormer(genotype, img_size=img_size, **kwargs).eval()
    return network, torch.zeros(1, network.in_chans, *network.img_size)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def fvcores(network, image):
    count = FlopCountAnalysis(network, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return count.total()


@EVERY_SIZE
def test_cost_is_that_of_the_built_network(size):
    rng = random.Random(size)
    spaces = [SearchSpace.for_size(size), SearchSpace.for_size(size, extended=True)]
    for i in range(40):
        genotype, img_size = spaces[i % 2].sample(rng), IMAGES[i // 2 % len(IMAGES)]
        network, image = build(genotype, img_size)
        with torch.no_grad(), Counter() as counter:
            network(image)
        assert cost(genotype, img_size) == Cost(parameters(network), counter.macs), (genotype, img_size)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("img_size", [224, 97, (64, 160)])
@pytest.mark.parametrize("extended", [False, True])
@EVERY_SIZE
def test_macs_are_fvcores(draw, size, extended, img_size):
    genotype = draw(size, seed=str(img_size), extended=extended)
    network, image = build(genotype, img_size)
    with torch.no_grad(), Counter() as counter:
        network(image)
    assert cost(genotype, img_size).macs == fvcores(network, image) == counter.macs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("extreme", [min, max])
@pytest.mark.parametrize("ffn", ["ibn", "convnext", "bottleneck"])
def test_cost_of_the_smallest_and_largest(ffn, extreme):
    space = SearchSpace.for_size("S0", extended=True)
    genes = {place: ffn if place[1] == "ffn" else extreme(allowed) for place, allowed in space.options.items()}
    genotype = space.build(genes)
    network, image = build(genotype, 32)
    assert cost(genotype, 32) == Cost(parameters(network), fvcores(network, image))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("num_classes", "in_chans"), [(0, 3), (1, 1), (10, 4)])
def test_classes_and_channels_count(draw, num_classes, in_chans):
    network, image = build(draw(), 64, num_classes=num_classes, in_chans=in_chans)
    expected = Cost(parameters(network), fvcores(network, image))
    assert cost(draw(), 64, num_classes=num_classes, in_chans=in_chans) == expected


def test_cost_of_efficientformerv2_as_published():
    for size, millions, giga in [("s0", 3.6, 0.407), ("s1", 6.19, 0.668), ("s2", 12.71, 1.272)]:
        price = cost(Genotype.shipped(f"efficientformerv2_{size}"))
        assert type(price.params) is type(price.macs) is int
        # the published parameters include a distillation head
        assert millions - 0.35 < price.params / 1e6 < millions
        assert price.macs / 1e9 == pytest.approx(giga, abs=1e-3)


def test_cost_is_fast(draw):
    genotypes = [draw("S0", seed) for seed in range(200)]
    start = time.perf_counter()
    for genotype in genotypes * 5:
        cost(genotype)
    assert 1000 / (time.perf_counter() - start) > 5000


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        ({}, True),
        ({"params": 100}, True),
        ({"params": 99}, False),
        ({"macs": 7}, True),
        ({"macs": 6}, False),
        ({"params": 100, "macs": 6}, False),
        ({"params": 99, "macs": 7}, False),
        ({"params": 100, "macs": 7}, True),
    ],
)
def test_a_budget_allows_what_is_within_every_limit(limits, fits):
    assert Budget(**limits).allows(Cost(params=100, macs=7)) is fits


def test_budgets_of_the_paper():
    assert [Budget.for_size(size).params for size in ("S0", "S1", "S2")] == [3_500_000, 6_000_000, 12_500_000]
    assert Budget.for_size("S1").macs is None
    with pytest.raises(ValueError, match="S0, S1, S2"):
        Budget.for_size("S3")


def test_the_papers_macs_are_those_of_table_3_and_scale_as_efficientformerv2():
    assert [paper_macs(size) for size in ("S0", "S1", "S2")] == [410_000_000, 900_000_000, 1_400_000_000]
    assert [round(paper_macs(size) / 1e9, 1) for size in ("S0", "S1", "S2")] == [0.4, 0.9, 1.4]
    assert paper_macs("S0", 48, 10) == round(410_000_000 * 22_119_680 / 406_860_320)
    assert paper_macs("S0", (48, 96), 10) > paper_macs("S0", 48, 10)
    with pytest.raises(ValueError, match="there is no size 'S3'; there are S0, S1, S2"):
        paper_macs("S3")


@pytest.mark.parametrize("size", ["S0", "S1", "S2"])
def test_the_papers_budgets_can_be_met_at_any_image_size_and_number_of_classes(size):
    space, reference = SearchSpace.for_size(size), Genotype.shipped(f"efficientformerv2_{size.lower()}")
    narrowest = space.build({place: values[0] for place, values in space.options.items()})
    for img_size in (*range(32, 81), *range(96, 513, 16)):
        for classes in (10, 100, 1000):
            budget = Budget(Budget.for_size(size).params, paper_macs(size, img_size, classes))
            assert budget.allows(cost(reference, img_size, classes)), (img_size, classes)
            assert budget.allows(cost(narrowest, img_size, classes)), (img_size, classes)


def test_a_budget_of_latency_is_a_limit_of_its_own():
    budget = Budget(params=100, latency_ms=12.5)
    assert budget.allows(Cost(params=100, macs=7))
    assert [budget.allows_latency(ms) for ms in (12.4, 12.5, 12.6)] == [True, True, False]
    assert Budget(params=100).allows_latency(1e9)


def test_a_budget_says_what_it_is_and_refuses_what_is_none():
    assert str(Budget()) == "no limit"
    assert str(Budget(3_500_000, 10**9)) == "3,500,000 params and 1,000,000,000 macs"
    assert str(Budget(3_500_000, latency_ms=12.5)) == "3,500,000 params and 12.5 ms latency"
    assert str(Budget(latency_ms=20)) == "20 ms latency"
    for name, limit in [("params", 0), ("macs", -1), ("latency_ms", 0.0), ("latency_ms", math.nan), ("macs", math.inf)]:
        with pytest.raises(ValueError, match=f"^budget.{name} is {limit}; it must be above 0 and finite$"):
            Budget(**{name: limit})
