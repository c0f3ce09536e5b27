"""A small network of which every weight matters, and images for it."""

import pytest
import torch

from esformer.model.esformer import ESFormer


@pytest.fixture
def network(draw, randomise):
    return randomise(ESFormer(draw(), num_classes=7, img_size=64))


@pytest.fixture
def image():
    return torch.randn(2, 3, 64, 64)
