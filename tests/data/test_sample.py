import pytest
import torch

from esformer.data.base import DataError
from esformer.data.datasets import DataConfig
from esformer.data.sample import sample_images

DIGITS = DataConfig(name="digits", img_size=32, num_classes=10, mean=[0.305] * 3, std=[0.376] * 3, crop_pct=1.0)


def test_images_are_normalised_and_drawn_by_the_seed():
    images, labels = sample_images(DIGITS, 200)
    assert images.shape == (200, 3, 32, 32) and labels.shape == (200,) and set(labels.tolist()) == set(range(10))
    assert images.mean().abs() < 0.1 and (images.std() - 1).abs() < 0.2
    again, _ = sample_images(DIGITS, 200)
    other, _ = sample_images(DIGITS, 200, seed=1)
    assert torch.equal(images, again) and not torch.equal(images, other)


def test_their_size_can_be_another():
    assert sample_images(DIGITS, 2, img_size=48)[0].shape == (2, 3, 48, 48)
    assert DIGITS.img_size == 32


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="of digits 1437 can be read, fewer than the 1500 asked for"):
        sample_images(DIGITS, 1500)
