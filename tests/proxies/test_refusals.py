"""What a proxy cannot score is refused with a sentence that says why; a score is never NaN."""

import math

import pytest
import torch
from networks import NETWORKS, SIZE, Encoder, OneConv, Times, batch, classifier, plain, pooled
from torch import nn
from torch.nn import functional as F

from esformer import proxies
from esformer.errors import ESFormerError
from esformer.proxies import ProxyError, score
from esformer.topology import Block, Topology

NAMES = proxies.names()
COUNTS = ("activations", "macs", "parameters", "sed", *(name for name in NAMES if name.endswith("_macs")))
LOSSES = ("grad_norm", "grasp", "zico")
NASWOTS = ("naswot", "naswot_without_norms")
BATCHED = (*LOSSES, *NASWOTS, "swap")
SYNFLOWS = ("log_synflow", "synflow")
USES_ACTIVATIONS = ("activations", *NASWOTS, "swap", *(n for n in NAMES if n.startswith("entropic_score")))


def scored(name, subject, **kwargs):
    return score(name, subject, **({"img_size": SIZE} | batch() | kwargs))


def refusal(name, subject, **kwargs):
    """The sentence with which the subject is refused."""
    with pytest.raises(ProxyError) as refused:
        scored(name, subject, **kwargs)
    sentence = str(refused.value)
    assert isinstance(refused.value, ESFormerError) and "\n" not in sentence and len(sentence) > 30
    return sentence


def test_an_unknown_name_is_refused_with_those_that_there_are():
    for call in (proxies.get, lambda name: score(name, plain())):
        with pytest.raises(ProxyError, match=r"'jacobian'.*entropic_score, .*naswot.*, zico"):
            call("jacobian")


@pytest.mark.parametrize("name", BATCHED)
def test_a_proxy_that_needs_a_batch_says_so(name):
    for lacking in ({"images": None}, {"labels": None}, {"images": None, "labels": None}):
        assert name in (sentence := refusal(name, plain(), **lacking)) and "images=(B, 3, H, W)" in sentence


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_of_wrong_shapes_is_refused(name):
    images, labels = batch().values()
    for wrong in ({"images": images[0]}, {"labels": labels[:3]}, {"labels": labels[:, None]}, {"images": images[:0]}):
        assert "must be (B, 3, H, W) and (B)" in refusal(name, plain(), **wrong)
    assert "must be" in refusal(name, plain(), images=images[:0], labels=labels[:0])
    assert "channels" in refusal(name, plain(), images=images[:, :1])


@pytest.mark.parametrize("name", sorted({*NAMES} - {*BATCHED, "dss"}))
def test_a_proxy_that_needs_no_batch_takes_none(name):
    assert score(name, pooled(), img_size=SIZE) == scored(name, pooled())


@pytest.mark.parametrize("name", LOSSES)
def test_labels_beyond_the_classes_are_refused(name):
    labels = torch.tensor([0, 1, 2, 3])
    assert "labels up to 3, but the network has 3 classes" in refusal(name, plain(), labels=labels)


@pytest.mark.parametrize("label", [-1, -100])
@pytest.mark.parametrize("name", LOSSES)
def test_negative_labels_are_refused(name, label):
    with pytest.raises(ProxyError, match="labels"):
        scored(name, plain(), labels=torch.tensor([0, 1, 2, label]))


@pytest.mark.parametrize("name", LOSSES)
def test_labels_may_be_small_integers(name):
    assert scored(name, plain(), labels=batch()["labels"].int()) == scored(name, plain())


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_needs_one_output_for_each_class(name):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = plain()

        def forward(self, x):
            return self.body(x), self.body(x)

    assert "returns a tuple" in refusal(name, Two())
    for network in (nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0))):
        assert "one score for each class" in refusal(name, network)


@pytest.mark.parametrize("name", USES_ACTIVATIONS)
def test_a_network_without_activations_is_refused(name):
    class Functional(nn.Conv2d):
        def forward(self, x):
            return F.relu(super().forward(x))

    class Idle(OneConv):
        def forward(self, x):
            return self[0](x)

    for network in (nn.Conv2d(3, 4, 3), Functional(3, 4, 3), Idle(), Encoder(F.gelu)):
        assert "activation modules" in refusal(name, network)


@pytest.mark.parametrize("name", [*SYNFLOWS, *LOSSES])
def test_a_network_without_weights_is_refused(name):
    assert "convolutions or linear layers" in refusal(name, nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()))


@pytest.mark.parametrize("name", ["meco", "zen_score"])
def test_a_network_without_feature_maps_is_refused(name):
    assert "feature maps (B, C, H, W)" in refusal(name, nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 3)))


@pytest.mark.parametrize("name", sorted({*NAMES} - {"sed"}))
def test_a_topology_is_no_network(name):
    assert f"{name} needs a network" in refusal(name, Topology((Block(1, {3: 1}),)))


@pytest.mark.parametrize("name", sorted({*NAMES} - {"sed", "parameters"}))
def test_a_network_of_other_channels_is_refused(name):
    sentence = refusal(name, classifier(nn.Conv2d(4, 4, 3), nn.ReLU()))
    assert f"{name} cannot run this network on images of 3 x 32 x 32" in sentence


@pytest.mark.parametrize("name", sorted({*NAMES} - {"sed", "parameters"}))
def test_a_network_of_another_image_size_is_refused(name):
    with pytest.raises(ProxyError, match="cannot run this network on images of 3 x 64 x 64"):
        scored(name, NETWORKS["vit"](), img_size=64, **batch(size=64))


def broken(factor):
    return classifier(nn.Conv2d(3, 4, 3), nn.ReLU(), Times(factor), nn.Conv2d(4, 4, 3), nn.ReLU())


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("name", sorted({*NAMES} - {*COUNTS, *NASWOTS, "meco", "swap", "dss"}))
def test_a_network_whose_values_are_not_finite_is_refused(name, factor):
    sentence = refusal(name, broken(factor))
    assert name in sentence and ("range" in sentence or "not defined" in sentence)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*NASWOTS, "meco", "swap"])
def test_what_is_not_finite_within_a_network_is_noticed(name, factor):
    with pytest.raises(ProxyError):
        scored(name, broken(factor))


def test_images_that_are_alike_are_refused_where_they_are_compared():
    images, labels = batch().values()
    alike = {"images": images[:1].repeat(4, 1, 1, 1), "labels": torch.zeros(4, dtype=torch.int64)}
    assert "alike" in refusal("naswot", plain(), **alike)
    assert "varies" in refusal("zico", plain(), **alike)
    assert "single image" in refusal("zico", plain(), images=images[:1], labels=labels[:1])
    for name in ("grad_norm", "grasp", "naswot"):
        assert math.isfinite(scored(name, plain(), images=images[:1], labels=labels[:1]))


@pytest.mark.parametrize("name", BATCHED)
def test_a_network_that_works_in_place_on_its_input_leaves_the_images_alone(name):
    data = batch()
    before = data["images"].clone()
    score(name, nn.Sequential(nn.Hardtanh(inplace=True), *plain()), **data)
    assert torch.equal(data["images"], before)


class Chance(nn.Module):
    """A dropout that does not ask whether it is training."""

    def forward(self, x):
        return F.dropout(x)


@pytest.mark.parametrize("name", ["entropic_score", "naswot", "synflow"])
def test_chance_within_a_network_follows_from_the_seed(name):
    network, scores = classifier(nn.Conv2d(3, 4, 3), Chance(), nn.ReLU()), []
    for seed in range(2):
        torch.manual_seed(seed)
        scores.append(scored(name, network))
    assert scores[0] == scores[1]


@pytest.mark.parametrize("name", sorted({*NAMES} - {"sed"}))
def test_a_network_that_cannot_be_copied_is_refused(name):
    network = plain()
    network.last = network(batch()["images"])  # as one does that keeps its features
    with pytest.raises(ProxyError):
        scored(name, network)


class Idle(nn.Module):
    """Its weights have no part in what it returns."""

    def __init__(self):
        super().__init__()
        self.layer, self.bias = nn.Linear(3, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x.mean((2, 3)) + self.bias


@pytest.mark.parametrize("name", ["grad_norm", "grasp", *SYNFLOWS])
def test_a_network_that_does_not_use_its_weights_is_refused(name):
    with pytest.raises(ProxyError, match="convolutions or linear layers"):
        scored(name, Idle())


def test_a_network_that_ignores_its_input_is_refused_by_what_compares_outputs():
    constant = classifier(nn.Conv2d(3, 4, 3), Times(0.0), nn.ReLU())
    for name in ("zen_score", "naswot"):
        assert name in refusal(name, constant)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError("CUDA error: out of memory")],
)
def test_a_device_without_memory_is_not_taken_for_a_network_that_cannot_run(monkeypatch, draw, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(proxies.LogSynflow, "measure_genotype", fails)
    with pytest.raises(ProxyError, match="cpu has no memory left .* search.workers .* search.img_size"):
        score("log_synflow", draw(), img_size=SIZE)
