"""A small network of which every weight matters, and images for it."""

import pytest
import torch
from timm.layers import LayerScale2d
from torch import nn

from esformer.model.esformer import ESFormer


@pytest.fixture(scope="session")
def randomise():
    """Move everything that starts at 0, 1 or 1e-5 to where a mistake would show."""

    @torch.no_grad()
    def randomise(network):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    values.uniform_(0.5, 1.5)
                for values in (module.bias, module.running_mean):
                    values.uniform_(-0.3, 0.3)
            elif isinstance(module, LayerScale2d):
                module.gamma.uniform_(0.2, 0.8)
            elif hasattr(module, "attention_biases"):
                module.attention_biases.normal_()
        return network.eval()

    return randomise


@pytest.fixture
def network(draw, randomise):
    return randomise(ESFormer(draw(), num_classes=7, img_size=64))


@pytest.fixture
def image():
    return torch.randn(2, 3, 64, 64)
