"""Networks whose activations or gradients leave float64's range without norms, and what computes them."""

import math

import pytest
import timm
import torch
from networks import NETWORKS, SIZE, classifier
from torch import nn
from torch.nn import functional as F

from esformer import proxies
from esformer.proxies import ProxyError, score
from esformer.proxies.scaled_tensor import ScaledTensor

REFUSED_BEFORE = (
    *("deit_tiny_patch16_224", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilevit_s", "levit_128s"),
    *("tiny_vit_5m_224", "efficientvit_b0", "repvit_m0_9", "coat_tiny", "maxvit_tiny_tf_224"),
)


class Doubling(nn.Module):
    """Squares what goes in, as a gate or linear attention does: the logarithm of the output doubles with each."""

    def forward(self, x):
        return x * x * 8


def deep(count):
    return classifier(nn.Conv2d(3, 4, 3), *(m for _ in range(count) for m in (nn.ReLU(), Doubling())))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [REFUSED_BEFORE[0], *(pytest.param(n, marks=pytest.mark.nightly) for n in REFUSED_BEFORE[1:])]
)
def test_timm_networks_have_finite_scores_at_their_own_size(name):
    network = timm.create_model(name)
    size = network.default_cfg["input_size"][-1]
    for proxy in ("entropic_score", "log_synflow"):
        assert 0 < score(proxy, network, img_size=size, draws=1) < math.inf, proxy


@pytest.mark.slow
def test_synflow_is_refused_only_where_it_is_too_large_itself():
    assert score("synflow", timm.create_model("deit_tiny_patch16_224"), draws=1) > 1e30
    with pytest.raises(ProxyError, match=r"about 10\^\d{5}, beyond float64's range; take log_synflow"):
        score("synflow", timm.create_model("repvit_m0_9"), draws=1)


def test_a_score_beyond_float64s_range_is_that_of_logarithms():
    """R = sum of w (8^(2^n - 1) a^(2^n)) with n doublings of an activation a: dR/dw is found by hand."""
    network, count = deep(11), 11
    weight = network[-1].weight
    with pytest.raises(ProxyError, match=r"about 10\^\d{4}, beyond float64's range; take log_synflow"):
        score("synflow", network, img_size=SIZE, draws=1)
    proxy, draw = proxies.get("log_synflow"), proxies.Draw(torch.Generator().manual_seed(5), (3, 8, 8))
    value = proxy.measure(network.double(), draw)
    conv, linear = network[0].weight.detach(), weight.detach()
    log_a = conv.sum((1, 2, 3)).log()
    log_out = (2**count - 1) * math.log(8) + 2**count * log_a
    assert log_out.min() > math.log(1e308)
    by_linear = (linear * log_out).sum()  # d R / d linear is the output of the last doubling
    log_by_conv = linear.sum(0).log() + log_out + count * math.log(2) - log_a  # of each tap, for the image is of ones
    by_conv = (conv * log_by_conv.view(-1, 1, 1, 1)).sum()
    assert value == pytest.approx(float(by_linear + by_conv), rel=1e-9)


@pytest.mark.parametrize("name", ["entropic_score", "entropic_score_channel", "entropic_score_batch", "log_synflow"])
@pytest.mark.parametrize("kind", ["pooled", "gated", "attention", "encoder", "resnet", "convnext", "vit"])
def test_where_float64_is_enough_the_score_is_the_same(monkeypatch, kind, name):
    network = NETWORKS[kind]()
    expected = score(name, network, img_size=SIZE, draws=1)
    made = []

    def first_refused(value):
        made.append(value)
        return len(made) > 1 and math.isfinite(value)

    module = __import__(f"esformer.proxies.{'entropic_score' if 'entropic' in name else 'synflow'}", fromlist=["math"])
    monkeypatch.setattr(
        module, "math", type("Math", (), {"isfinite": staticmethod(first_refused), "isinf": math.isinf})
    )
    rounding = 1e-4 if (kind, name) == ("encoder", "log_synflow") else 1e-9  # of its softmaxes' gradients
    assert score(name, network, img_size=SIZE, draws=1) == pytest.approx(expected, rel=rounding)
    assert made and made[0] == expected


FACTOR = 2.0**40
OPERATIONS = {
    "sum of terms": lambda x, y: x + 3 * y + 1e-3,
    "difference": lambda x, y: 1 - x - y,
    "gate": lambda x, y: x * torch.relu(y),
    "quotient": lambda x, y: x / (y * y + 1e-6),
    "powers": lambda x, y: (x * x + y * y).sqrt() + (x * x + 1).rsqrt() + y**3 + 1 / (1 + x * x),
    "norms": lambda x, y: F.normalize(x, dim=-1) + y.norm(dim=-1, keepdim=True),
    "matrix products": lambda x, y: (x @ y.transpose(-1, -2)).softmax(-1) @ y,
    "attention": lambda x, y: F.scaled_dot_product_attention(x, y, x + y),
    "convolution": lambda x, y: F.conv2d(x, y[:, :, :3, :3], torch.ones(2).double()),
    "linear with bias": lambda x, y: F.linear(x, y[0, 0], torch.arange(8.0).double()),
    "pools": lambda x, y: F.avg_pool2d(x, 2) + F.max_pool2d(y, 2) + F.interpolate(x, 4, mode="bilinear"),
    "selection": lambda x, y: torch.cat([x[..., ::2], y.roll(1, -1)[..., 1:3]], -1).flatten(1).amax(1),
    "choice": lambda x, y: torch.where(x > y, x, 1e-3 * y).clamp_min(-0.5).masked_fill(x < 0, -2),
    "in place": lambda x, y: x.clone().add_(y).mul_(3).sub_(1).relu_(),
    "saturating": lambda x, y: x.sigmoid() + (y * 1e-12).tanh() + F.gelu(x),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("exponent", [0, 40, -40])
def test_operations_and_their_gradients(name, exponent):
    """Whatever factor is kept apart, the products are those of ordinary tensors."""
    values = torch.randn(2, 2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for wrap in (lambda x: x * 2.0**exponent, lambda x: ScaledTensor(x, exponent)):
        x, y = (wrap(v).detach().requires_grad_() for v in values)
        out = OPERATIONS[name](x, y)
        gradients = torch.autograd.grad(out.sum(), (x, y), allow_unused=True)
        results.append([out, *(g for g in gradients if g is not None)])
    for plain, scaled in zip(*results, strict=True):
        scaled = scaled.product() if isinstance(scaled, ScaledTensor) else scaled
        torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-9 * float(plain.detach().abs().max()))


def test_a_factor_has_no_end():
    x = ScaledTensor(torch.tensor([1.0, 3.0], dtype=torch.float64), 5000)
    squared = x * x
    assert squared.exponent == 10000 and squared.mantissa.tolist() == [1, 9]
    assert (squared / squared).product().tolist() == [1, 1]
    assert (x - x * (1 - 2**-20)).product().tolist() == [math.inf, math.inf]  # 2^4980 is beyond float64
    assert squared.log().product()[1].item() == pytest.approx(10000 * math.log(2) + math.log(9))
    assert x.softmax(0).product().tolist() == [0, 1]
    assert ((x + 1) == x).all() and (ScaledTensor(x.mantissa, -5000) + 1).product().tolist() == [1, 1]
    assert "2**5000" in repr(x)


def test_a_softmax_of_equals_passes_no_rounding_on():
    """Keys as large as e^40 would make 1e4 of its rounding errors, and a deep network infinity of those."""
    generator = torch.Generator().manual_seed(0)
    row = torch.rand(1, 1, 8, dtype=torch.float64, generator=generator)
    tokens = (row * 1e17).expand(1, 49, 8).contiguous().requires_grad_()
    weight = torch.rand(1, 49, 8, dtype=torch.float64, generator=generator)

    def by_logits(wrap):
        x = wrap(tokens.detach())
        logits = (x @ x.transpose(1, 2)).detach().requires_grad_()
        out = (logits.softmax(-1) @ x * weight).sum()
        return torch.autograd.grad(out, logits)[0]

    assert by_logits(lambda x: x).abs().max() > 0  # rounding
    assert by_logits(ScaledTensor).product().abs().max() == 0
