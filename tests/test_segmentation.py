"""The example of dense prediction learns."""

import runpy
from pathlib import Path

import pytest
import torch

import esformer


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(Path(__file__).parent.parent / "docs" / "segmentation.py")


def test_the_images_are_what_their_labels_say(example):
    images, labels = example["make_images"](200, 64, torch.Generator().manual_seed(1))
    again, _ = example["make_images"](200, 64, torch.Generator().manual_seed(1))
    assert torch.equal(images, again)
    assert images.shape == (200, 3, 64, 64) and labels.shape == (200, 64, 64)
    shares = labels.flatten().bincount(minlength=4) / labels.numel()
    assert shares.min() > 0.04 and shares.argmax() == 0
    noise = [images.transpose(0, 1)[:, labels == kind].std().item() for kind in range(4)]
    assert noise[0] == pytest.approx(12**-0.5 / 0.3, rel=0.02)  # uniform in all colours
    colours = torch.stack([images.transpose(0, 1)[:, labels == kind].mean(dim=1) for kind in range(4)])
    assert colours.abs().max() < 0.35  # a colour tells no class


def test_mean_iou(example):
    labels = torch.tensor([[[0, 0, 1, 2]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 1, 2]]]), 4).permute(0, 3, 1, 2).float()
    loss, iou = example["evaluate"](torch.nn.Identity(), logits, labels)
    assert iou == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)  # the last class is nowhere
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())


@pytest.mark.nightly
def test_it_learns(example, capsys):
    before, after = example["main"](steps=30, batch=8, size=64)
    assert after[1] > before[1] + 0.15 and after[0] < before[0] - 0.4
    assert f"after: loss {after[0]:.3f}, mean IoU {after[1]:.3f}" in capsys.readouterr().out


def test_it_starts_from_a_checkpoint(example, tmp_path):
    trained = esformer.load("esformer_s1", num_classes=3, img_size=32)
    with torch.no_grad():
        trained.stem.conv1.conv.weight.fill_(0.25)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    backbone = esformer.load(tmp_path / "w.pt", features_only=True, img_size=64)
    network = example["Segmenter"](backbone, classes=4)
    assert (network.backbone.stem_conv1.conv.weight == 0.25).all()
    assert network(torch.zeros(1, 3, 96, 160)).shape == (1, 4, 96, 160)
