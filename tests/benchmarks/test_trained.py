"""Architectures of other spaces as they are trained: read, built for images, priced, and refused in a sentence."""

import pytest
import torch
from test_darts import DARTS_V2
from timm.layers import DropPath
from torch import nn
from toy import Toy

from esformer.benchmarks import spaces
from esformer.benchmarks.architecture import GeneArchitecture, NetworkSettings
from esformer.benchmarks.darts import auxiliary_tower, parse
from esformer.benchmarks.trained import architecture_of, network_for, price, read_architecture, shapes
from esformer.errors import ESFormerError
from esformer.genotype import Genotype

DARTS = GeneArchitecture("darts", repr(parse(DARTS_V2)))
SMALL = GeneArchitecture("darts", DARTS.notation, channels=4, layers=5)
CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
TABLE = GeneArchitecture("nats-tss/cifar10", CELL)


class Stubborn(Toy):
    name = "stubborn"

    def network(self, values):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


class Broken(Toy):
    name = "broken"

    def network(self, values):
        raise RuntimeError("no such thing")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for space in (Toy, Stubborn, Broken):
        monkeypatch.setitem(spaces._SPACES, space.name, space)


def by_hand(widths, stems, stem_params, classes):
    """DARTS_V2: each cell brings its two inputs to its width.

    A normal one has five separable convolutions, each twice depthwise, pointwise and norm, and a dilated one; a
    reduction cell has pools and identities alone.
    """
    outs, total = [*stems], stem_params
    for place, width in enumerate(widths):
        reduction = place in (len(widths) // 3, 2 * len(widths) // 3)
        total += (outs[-2] + outs[-1]) * width + 2 * 2 * width
        total += 0 if reduction else 11 * (9 * width + width**2 + 2 * width)
        outs.append(4 * width)
    return total + (outs[-1] + 1) * classes


def test_parameters_are_the_authors():
    cifar = by_hand([36] * 6 + [72] * 7 + [144] * 7, (108, 108), 27 * 108 + 2 * 108, 10)
    stem = 27 * 24 + 2 * 24 + 9 * 24 * 48 + 2 * 48 + 9 * 48 * 48 + 2 * 48
    imagenet = by_hand([48] * 4 + [96] * 5 + [192] * 5, (48, 48), stem, 1000)
    assert (cifar, imagenet) == (3_349_342, 4_718_752)  # "3.3" and "4.7" millions in the paper
    assert [sum(w.numel() for name, w in shapes(DARTS, *images).items() if trained(name)) for images in IMAGES] == [
        cifar,
        imagenet,
    ]


IMAGES = ((32, 10), (224, 1000))


def trained(name):
    return "running" not in name and "tracked" not in name


def test_the_network_on_imagenet_brings_images_to_an_eighth():
    network = network_for(SMALL, NetworkSettings(10, 64)).eval()
    seen = []
    network.cells[0].register_forward_hook(lambda cell, x, out: seen.extend([x[0].shape, x[1].shape, out.shape]))
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    assert seen == [(2, 4, 16, 16), (2, 4, 8, 8), (2, 16, 8, 8)]


@pytest.mark.parametrize(("mobile", "side", "norms"), [(False, 8, 2), (True, 7, 1)])
def test_auxiliary_towers_are_the_authors(mobile, side, norms):
    tower = auxiliary_tower(64, 10, mobile).eval()
    assert tower(torch.zeros(2, 64, side, side)).shape == (2, 10)
    count = 64 * 128 + 2 * 128 + 4 * 128 * 768 + (2 * 768 if norms == 2 else 0) + 769 * 10
    assert sum(p.numel() for p in tower.parameters()) == count


def test_the_tower_sees_the_second_reduction_and_speaks_in_training_alone():
    network = network_for(SMALL, NetworkSettings(10, 32, auxiliary=True))
    seen = []
    network.auxiliary.register_forward_hook(lambda tower, x, out: seen.append(x[0].shape))
    own, auxiliary = network(torch.randn(2, 3, 32, 32))
    assert own.shape == auxiliary.shape == (2, 10) and seen == [(2, 64, 8, 8)]
    assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10) and len(seen) == 1


def test_every_path_but_an_identity_is_dropped():
    for by_depth, rates in ((False, [0.2] * 5), (True, [0.0, 0.05, 0.1, 0.15, 0.2])):
        network = network_for(SMALL, NetworkSettings(10, 32, drop_path=0.2, by_depth=by_depth))
        for cell, rate in zip(network.cells, rates, strict=True):
            if not rate:
                assert cell.paths is None
                continue
            for op, path in zip(cell.ops, cell.paths, strict=True):
                assert type(path) is (nn.Identity if isinstance(op, nn.Identity) else DropPath)
                assert isinstance(path, nn.Identity) or path.drop_prob == pytest.approx(rate)
    plain = network_for(SMALL, NetworkSettings(10, 32))
    assert not [part for part in plain.modules() if isinstance(part, DropPath)]  # what proxies see stays what it was


def test_files_are_of_either_kind(tmp_path):
    for one in (DARTS, SMALL, TABLE, Genotype.shipped("esformer_s0")):
        one.save(path := tmp_path / "one.yaml", comment="found by a search")
        assert read_architecture(path) == one == architecture_of(one.to_dict())
    assert "channels" not in DARTS.to_dict() and DARTS.digest != SMALL.digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("space: darts\narchitecture: 3\n", "architecture is 3; it must be text"),
        ("space: darts\narchitecture: x\nlayers: 0\n", "layers is 0; it must be a whole number from 1 to 1,000"),
        ("space: darts\narchitecture: x\ndepth: 3\n", "it must be a mapping of space, architecture, channels, layers"),
        ("architecture: x\n", "space is missing; it must be text"),
        ("space: darts\n", "is not a genotype"),
        ("{", "one.yaml"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, sentence):
    (path := tmp_path / "one.yaml").write_text(text)
    with pytest.raises(ESFormerError, match="one.yaml") as refused:
        read_architecture(path)
    assert sentence in str(refused.value)


def test_spaces_of_tables_and_of_others_take_the_images_as_they_are():
    for architecture in (TABLE, GeneArchitecture("toy", "8")):
        network = network_for(architecture, NetworkSettings(7, 48))
        assert network(torch.zeros(2, 3, 48, 48)).shape == (2, 7)
        assert price(architecture, 48, 7).params == sum(p.numel() for p in network.parameters())


def test_building_draws_the_weights_and_pricing_nothing():
    torch.manual_seed(3)
    first = network_for(GeneArchitecture("toy", "4"), NetworkSettings(10, 32))[0].weight
    torch.manual_seed(3)
    price(SMALL, 32, 10)
    assert torch.equal(network_for(GeneArchitecture("toy", "4"), NetworkSettings(10, 32))[0].weight, first)


@pytest.mark.parametrize(
    ("architecture", "settings", "sentence"),
    [
        (GeneArchitecture("nowhere", "x"), {}, "there is no space 'nowhere'"),
        (GeneArchitecture("darts", "x"), {}, "'x' is no genotype of DARTS"),
        (GeneArchitecture("toy", "5"), {}, "'5' is no architecture of toy; it must look like 4"),
        (GeneArchitecture("toy", "4", layers=3), {}, "space toy leaves no layers open; leave layers out"),
        (GeneArchitecture("broken", "4"), {}, "cannot be built or scored: RuntimeError: no such thing"),
        (GeneArchitecture("stubborn", "4"), {"num_classes": 7}, "its classifier must have `num_classes` outputs"),
        (GeneArchitecture("toy", "4"), {"drop_path": 0.1}, "have no paths to drop; set recipe.drop_path=0"),
        (GeneArchitecture("toy", "4"), {"auxiliary": True}, "have no auxiliary tower; set recipe.auxiliary=0"),
        (GeneArchitecture("darts", DARTS.notation, channels=3), {}, "channels is 3; it must be even"),
        (SMALL, {"img_size": 34}, "data.img_size is 34; networks of space darts halve images 2 times"),
        (SMALL, {"img_size": 72}, "halve images 5 times, so it must be a multiple of 32"),
        (SMALL, {"img_size": 64, "auxiliary": True}, "for images of 32 to 40, 224 or 256 pixels, not of 64"),
    ],
)
def test_what_cannot_be_built_is_refused(architecture, settings, sentence):
    with pytest.raises(ESFormerError) as refused:
        network_for(architecture, NetworkSettings(**({"num_classes": 10, "img_size": 32} | settings)))
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
