"""Stochastic depth: as often as it should, and alike for any number of devices."""

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from esformer.training.drop_path import DeterministicDropPath, PlacedDropPath

RATES = (0.0, 0.1, 0.5, 0.2, 0.3, 0.05)


def network():
    return nn.Sequential(*(DropPath(rate) for rate in RATES), nn.BatchNorm2d(1))


def scales(first, count, epoch=0, seed=0, order=None):
    drops = DeterministicDropPath(network(), seed)
    positions = np.arange(first, first + count)
    positions = positions if order is None else positions[order]
    drops.draw(np.stack([np.full(count, epoch), positions, positions], axis=1), torch.device("cpu"))
    return torch.stack([path.scale.flatten() for path in drops.paths], dim=1)  # B, paths


@pytest.mark.parametrize("shares", [(256, 256), (128, 128, 256), (6, 506)])
def test_an_image_skips_the_same_paths_in_any_batch(shares):
    parts, first = [], 512
    for share in shares:
        parts.append(scales(first, share))
        first += share
    assert torch.equal(torch.cat(parts), scales(512, 512))


def test_the_order_of_a_batch_does_not_matter():
    order = np.random.default_rng(0).permutation(64)
    assert torch.equal(scales(128, 64, order=order), scales(128, 64)[order])


def test_paths_are_dropped_as_often_as_they_should_and_independently():
    drawn = scales(0, 20_000)
    assert drawn.shape[1] == sum(rate > 0 for rate in RATES)
    for column, rate in zip(drawn.T, [rate for rate in RATES if rate], strict=True):
        assert set(column.tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
        assert (column == 0).float().mean().item() == pytest.approx(rate, abs=0.015)
        assert column.mean().item() == pytest.approx(1, abs=0.03)
    together = torch.corrcoef((drawn == 0).float().T) - torch.eye(drawn.shape[1])
    assert together.abs().max() < 0.03
    for other in (scales(0, 20_000, epoch=1), scales(0, 20_000, seed=1)):
        assert torch.corrcoef(torch.stack([drawn[:, 1], other[:, 1]]))[0, 1].abs() < 0.03


def test_a_dropped_path_is_zero_in_training_and_whole_in_evaluation():
    path = nn.Sequential(DropPath(0.5))
    drops = DeterministicDropPath(path, seed=0)
    drops.draw(np.stack([np.zeros(8), np.arange(8), np.arange(8)], axis=1).astype(int), torch.device("cpu"))
    assert type(path[0]) is PlacedDropPath
    images = torch.randn(8, 2, 3, 3)
    torch.testing.assert_close(path(images), images * path[0].scale)
    assert {0.0, 2.0} == set(path[0].scale.flatten().tolist())
    assert torch.equal(path.eval()(images), images)
