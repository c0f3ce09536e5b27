"""Where the tables lie, and what every network of every benchmark must do."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from esformer.benchmarks.base import BenchmarkError
from esformer.proxies.prepare import is_activation

NAS = Path(__file__).parents[2].parent / "shared" / "data" / "nas"


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="session")
def table():
    """The path of a table of trained architectures; without it the test is skipped."""

    def table(name):
        if not (NAS / name).is_file():
            pytest.skip(f"needs ../shared/data/nas/{name}")
        return NAS / name

    return table


@pytest.fixture
def counted_as_built():
    """Build the networks, on no device, and compare their parameters with `params`."""

    def counted_as_built(benchmark, architectures, dataset="cifar10"):
        with torch.device("meta"):
            for architecture in architectures:
                built = parameters(benchmark.network(architecture, dataset))
                assert built == benchmark.params(architecture, dataset), architecture

    return counted_as_built


@pytest.fixture
def macs():
    """Multiplications of a network's convolutions and linear layers."""

    def macs(network, size):
        total = 0

        def add(module, _, output):
            nonlocal total
            total += output.numel() * module.weight[0].numel()

        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(add)
        network(torch.zeros(1, 3, size, size, device="meta"))
        return total

    return macs


@pytest.fixture
def behaves():
    """A single image through a network in training, and all that proxies and workers do to networks."""

    def behaves(benchmark, architecture, dataset="cifar10"):
        network = benchmark.network(architecture, dataset).train()
        uses = dict.fromkeys((m for m in network.modules() if is_activation(m)), 0)
        for activation in uses:
            assert not getattr(activation, "inplace", False)
            activation.register_forward_pre_hook(lambda module, _: uses.update({module: uses[module] + 1}))
        known = benchmark.datasets[dataset]
        x = torch.randn(1, 3, known.img_size, known.img_size)
        logits = network(x)
        assert logits.shape == (1, known.num_classes) and logits.isfinite().all()
        assert uses and set(uses.values()) == {1}  # each has one place
        logits.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        plain = benchmark.network(architecture, dataset).eval()
        for twin in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
            assert torch.equal(twin(x), plain(x))

    return behaves


@pytest.fixture
def refused():
    """One error of one line, which says these words."""

    def refused(call, *words):
        with pytest.raises(ValueError) as caught:
            call()
        assert type(caught.value) is BenchmarkError
        message = str(caught.value)
        assert len(message.splitlines()) == 1 and len(message) < 700
        for word in words:
            assert word in message

    return refused
