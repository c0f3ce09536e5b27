"""Everything in a checkpoint is looked at before a training uses it."""

import copy
import itertools

import pytest
import torch
from lightning import Trainer
from quiet import QUIET

from callbacks.checkpoints import AtomicCheckpointIO
from esformer.checkpoint.training_state import StateError, TrainingState, check_training_state
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule, optimizer_of

RECIPE = Recipe(epochs=1, warmup_epochs=0, batch_size=16, lr=1e-3)
"""That of the checkpoint."""


@pytest.fixture(scope="module")
def like(genotype):
    with torch.device("meta"):
        network = ESFormerModule(genotype, RECIPE, num_classes=10, img_size=64).model
    return TrainingState(
        network=network,
        optimizer=optimizer_of(network, RECIPE),
        loops=Trainer(**QUIET).fit_loop.state_dict(),
        callbacks={"Checkpoints": {"best_score": float("-inf")}},
        settings={"num_classes": 10, "img_size": 64},
        ema=True,
        max_skipped=2,
        epochs=RECIPE.epochs,
    )


@pytest.fixture
def state(content):
    """A checkpoint whose every part may be changed."""
    part = {"callbacks": {"Checkpoints": {"best_score": 0.5}, "History": {"epochs": [{"epoch": 0, "lr": 0.1}]}}}
    return copy.deepcopy(content) | part


def test_what_the_training_wrote_is_good(state, like, trained):
    check_training_state(state, like)
    check_training_state(AtomicCheckpointIO().load_checkpoint(trained) | {"callbacks": state["callbacks"]}, like)


def at(state, path):
    for name in path[:-1]:
        state = state[name]
    return state, path[-1]


MOMENT = ("optimizer_states", 0, "state", 5, "exp_avg")
GROUP = ("optimizer_states", 0, "param_groups", 0)
PROGRESS = ("loops", "fit_loop", "epoch_loop.batch_progress", "total", "ready")
STATISTIC = ("state_dict", "model.norm.running_var")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        (("state_dict",), "state_dict is missing"),
        (STATISTIC, "state_dict has no model.norm.running_var"),
        (("state_dict_ema",), "state_dict_ema is missing"),
        (("state_dict_ema", "head.bias"), "state_dict_ema has no head.bias"),
        (("optimizer_states",), "optimizer_states is not the state of one optimiser"),
        (("optimizer_states", 0), "optimizer_states is not the state of one optimiser"),
        (("optimizer_states", 0, "state"), "the optimiser's state is missing"),
        (("optimizer_states", 0, "state", 5), "states of .* parameters; there are"),
        (MOMENT, "parameter 5 is not step, exp_avg, exp_avg_sq"),
        (GROUP, "param_groups are not"),
        ((*GROUP, "params"), "is of other parameters"),
        (("lr_schedulers",), "lr_schedulers is not the state of one schedule"),
        (("lr_schedulers", 0, "base_lrs"), "base_lrs is missing"),
        (("lr_schedulers", 0, "last_epoch"), "last_epoch is missing"),
        (("loops",), "loops is missing"),
        (("loops", "fit_loop"), "loops.fit_loop is missing"),
        (("loops", "fit_loop", "epoch_progress"), "epoch_progress is missing"),
        (PROGRESS, "ready is missing"),
        (("callbacks",), "callbacks is missing"),
        (("callbacks", "Checkpoints"), "callbacks.Checkpoints is missing"),
        (("callbacks", "Checkpoints", "best_score"), "best_score is missing"),
        (("epoch",), "epoch is missing"),
        (("global_step",), "global_step is missing"),
        (("hyper_parameters", "provenance"), "provenance is missing"),
        (("pytorch-lightning_version",), "version of Lightning that wrote it is missing"),
    ],
)
def test_what_is_missing(path, match, state, like):
    part, name = at(state, path)
    del part[name]
    with pytest.raises(StateError, match=match):
        check_training_state(state, like)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (MOMENT, torch.zeros(3), "exp_avg is of shape"),
        (MOMENT, torch.zeros(10**6), "exp_avg is of shape"),
        (MOMENT, lambda old: old.int(), "real floating-point numbers"),
        (MOMENT, lambda old: old.to("meta"), "without numbers"),
        (MOMENT, lambda old: torch.zeros(1).expand_as(old), "does not|lie in memory"),
        (MOMENT, lambda old: old.to_sparse(), "of another layout"),
        (MOMENT, lambda old: old * float("nan"), "not finite"),
        (MOMENT, 3, "is a int and no tensor"),
        ((*MOMENT[:-1], "exp_avg_sq"), lambda old: old - 1, "mean of squares and below 0"),
        ((*MOMENT[:-1], "step"), torch.zeros(2), "step is of shape"),
        ((*MOMENT[:-1], "step"), torch.tensor(-1.0), "step is -1, and the training made 3"),
        ((*MOMENT[:-1], "step"), torch.tensor(1e9), r"step is 1e\+09, and"),
        ((*MOMENT[:-1], "max_exp_avg_sq"), torch.zeros(2), "is not step, exp_avg, exp_avg_sq"),
        (("optimizer_states", 0, "state"), {}, "states of 0 parameters"),
        ((*GROUP, "params"), [0], "is of other parameters"),
        ((*GROUP, "maximize"), True, "maximize is True; it must be False"),
        ((*GROUP, "betas"), ["a", 1], "betas is"),
        ((*GROUP, "lr"), "fast", "lr is 'fast'; it must be a number"),
        ((*GROUP, "fused"), "yes", "fused is 'yes'"),
        (STATISTIC, lambda old: -old, "is a variance and below 0"),
        (STATISTIC, torch.ones(3), r"is of shape \(3,\); it must be"),
        (("state_dict", "model.head.weight"), torch.zeros(11, 88), r"is of shape \(11, 88\); it must be \(10, 88\)"),
        (("state_dict", "model.wings"), torch.zeros(1), "state_dict has 'model.wings'"),
        (("state_dict_ema", "head.weight"), torch.zeros(11, 88), "state_dict_ema: head.weight is of shape"),
        (("hyper_parameters", "num_classes"), 11, "num_classes is 11 there, and 10 in this training"),
        (("hyper_parameters", "num_classes"), 10.0, "num_classes is 10.0 there"),
        (("lr_schedulers", 0, "optimizer"), 5, "lr_schedulers has 'optimizer'"),
        (("lr_schedulers", 0, "base_lrs"), [1e9, 1e9], "base_lrs is"),
        (("lr_schedulers", 0, "last_epoch"), 2, "stands at step 2, and the training at 3"),
        (("lr_schedulers", 0, "_last_lr"), None, "_last_lr is missing; it must be a list"),
        (PROGRESS, -1, "ready is -1"),
        (PROGRESS, 10**30, "it must be a whole number"),
        (PROGRESS, 1000, "batch_progress.total cannot be"),
        (("callbacks",), [], "callbacks is a list"),
        (("callbacks", "Checkpoints"), 3, "callbacks.Checkpoints is a int"),
        (("callbacks", "Checkpoints", "best_score"), "high", "best_score is 'high'"),
        (("callbacks", "History"), 3, "History is not a list of epochs"),
        (("callbacks", "History", "epochs"), [{"lr": "x"}], "History is not a list of epochs"),
        (("epoch",), -1, "epoch is -1"),
        (("epoch",), 5, "it stands in epoch 5 of 1 at step 3"),
        (("global_step",), 1.5, "global_step is 1.5"),
        (("global_step",), 1 << 90_000, "global_step is"),
        (("global_step",), 2, "it stands in epoch"),
        (("train_loss",), [[float("nan"), 1]], "train_loss is nan"),
        (("train_loss",), [[1]], r"train_loss holds \[1\]"),
        (("train_loss",), "low", "train_loss is 'low'"),
        (("metrics",), {"val/top1": "high"}, "metrics are not numbers"),
        (("accumulate",), 0, "accumulate is 0"),
        (("ImageDataModule",), {"corrupt": {1: 2}}, "corrupt images"),
        (("MixedPrecision",), {}, "MixedPrecision: scale is missing"),
        (("pytorch-lightning_version",), "0.1", "version of Lightning that wrote it is '0.1'"),
    ],
    ids=itertools.count(),
)
def test_what_is_odd(path, value, match, state, like):
    part, name = at(state, path)
    part[name] = value(part[name]) if callable(value) else value
    with pytest.raises(StateError, match=match) as caught:
        check_training_state(state, like)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_training_without_an_average_needs_none(state, like):
    del state["state_dict_ema"]
    check_training_state(state, TrainingState(**{**vars(like), "ema": False}))


def test_an_optimiser_that_has_skipped_all_steps_so_far_has_no_state(state, like):
    state["optimizer_states"][0]["state"] = {}
    check_training_state(state, TrainingState(**{**vars(like), "max_skipped": 3}))
