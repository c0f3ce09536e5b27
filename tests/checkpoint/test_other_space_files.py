"""Files of networks of other spaces than the ESFormers': what they must hold, and what of them is refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import esformer
from esformer.benchmarks.architecture import GeneArchitecture
from esformer.benchmarks.trained import plain_network
from esformer.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from esformer.checkpoint.other_spaces import fitting
from esformer.checkpoint.training_state import StateError, _check_moments
from esformer.errors import ESFormerError
from esformer.recipe import Recipe
from esformer.training.module import optimizer_of

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
TABLE = GeneArchitecture("nats-tss/cifar10", CELL)


@pytest.fixture(scope="module")
def weights():
    return plain_network(TABLE, 32, 7).state_dict()


@pytest.fixture
def save(weights, tmp_path):
    def save(**other):
        data = {"classes": list("abcdefg"), "mean": [0.5] * 3, "std": [0.25] * 3}
        found = Checkpoint(Path(), TABLE, 7, 3, (32, 32), weights, None, data=data)
        replace(found, **other).save(path := tmp_path / "one.safetensors")
        return path

    return save


def test_weights_and_facts_come_back(save, weights):
    network = esformer.load(save())
    assert all(map(torch.equal, network.state_dict().values(), weights.values()))
    facts = network.genotype, network.num_classes, network.in_chans, network.img_size
    assert facts == (TABLE, 7, 3, (32, 32)) and network.pretrained_cfg["label_names"] == tuple("abcdefg")


def test_what_a_training_alone_needs_is_left_out(weights):
    tower = {"auxiliary.0.weight": torch.zeros(3)}
    assert fitting(weights | tower, TABLE, 32, 7).keys() == weights.keys()


def first(weights):
    return next(iter(weights))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop(first(w)), "is missing in it, and of shape"),
        (lambda w: w.update({first(w): torch.zeros(3)}), "is of shape (3,) in it, and of shape"),
        (lambda w: w.update(other=torch.zeros(3)), "other is of shape (3,) in it, and missing in a network of space"),
        (lambda w: w.update({first(w): "x"}), "is a str and no tensor"),
        (lambda w: w.update({first(w): torch.zeros(1).expand(10**9)}), "claims to have 1,000,000,000 numbers"),
    ],
)
def test_weights_of_another_network_are_refused(weights, change, sentence):
    changed = dict(weights)
    change(changed)
    with pytest.raises(ESFormerError) as refused:
        fitting(changed, TABLE, 32, 7)
    assert sentence in str(refused.value) and "nats-tss" in str(refused.value)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"num_classes": 8}, "is of shape (7"),
        ({"num_classes": 0}, "num_classes is 0; it must be from 1 to"),
        ({"img_size": (32, 64)}, "networks of other spaces take squares"),
        ({"genotype": replace(TABLE, layers=3)}, "leaves no layers open"),
        ({"genotype": GeneArchitecture("nowhere", CELL)}, "there is no space 'nowhere'"),
        ({"genotype": GeneArchitecture("darts", "__import__('os').mkdir('made')")}, "is no genotype of DARTS"),
    ],
)
def test_what_a_file_says_must_be(save, other, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(save(**other))
    message = str(refused.value)
    assert sentence in message and "one.safetensors" in message and not Path("made").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop(0), "has states of 1 parameters; there are 2"),
        (lambda s: s[0].update(step=torch.zeros(())), "is not momentum_buffer"),
        (lambda s: s[0].update(momentum_buffer=torch.zeros(5)), "is of shape (5,)"),
        (lambda s: s[0]["momentum_buffer"].fill_(math.nan), "numbers that are not finite"),
    ],
)
def test_the_moments_of_sgd_are_looked_at(change, sentence):
    recipe = Recipe(optimizer="sgd")
    state = optimizer_of(nn.Linear(3, 2), recipe).state_dict()["state"]
    like = type("Like", (), {"optimizer": optimizer_of(nn.Linear(3, 2), recipe), "max_skipped": 0})
    _check_moments(state, like, step=3)
    change(state)
    with pytest.raises(StateError) as refused:
        _check_moments(state, like, step=3)
    assert sentence in str(refused.value)


def test_without_momentum_there_is_no_state():
    like = type("Like", (), {"optimizer": optimizer_of(nn.Linear(3, 2), Recipe(optimizer="sgd", momentum=0.0))})
    like.max_skipped = 0
    _check_moments({}, like, step=3)
