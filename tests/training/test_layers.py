"""Layer-wise learning rates and frozen stages, in a module that really trains."""

import pytest
import torch
from lightning import Callback, Trainer
from quiet import QUIET
from timm.layers import DropPath, convert_sync_batchnorm
from torch import nn

from callbacks.ema import EMA
from callbacks.speed import learning_rate
from esformer.data.datamodule import ImageDataModule
from esformer.data.datasets import DataConfig
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule

BATCHES, POISONED = 4, 2
COMMON = dict(epochs=1, warmup_epochs=0, batch_size=32, lr=1e-3)


class Watch(Callback):
    """Keeps the weights from before the first step; makes one batch infinite; looks at the optimiser."""

    def on_train_start(self, trainer, pl_module):
        self.before = {name: value.clone() for name, value in pl_module.model.state_dict().items()}
        self.base = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert pl_module.model.norm.training and pl_module.model.head.training
        self.base.append(learning_rate(trainer))
        self.rates = {id(p): g["lr"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
        self.decays = {id(p): g["weight_decay"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
        if batch_idx == POISONED:
            batch.images.fill_(float("inf"))


def fitted(recipe, **how):
    """A module after an epoch of four steps, one of them not finite, with a validation in between; and its watchers."""
    torch.manual_seed(0)
    module = ESFormerModule(Genotype.shipped("efficientformerv2_s0"), recipe, num_classes=10, img_size=32)
    data = DataConfig("digits", img_size=32, num_classes=10, crop_pct=1.0, workers=0, limit=BATCHES * 32)
    ema, watch = EMA(), Watch()
    trainer = Trainer(
        **QUIET,
        max_epochs=recipe.epochs,
        val_check_interval=2,
        limit_val_batches=1,
        callbacks=[ema, watch],
        **how,
    )
    trainer.fit(module, ImageDataModule(data, recipe))
    assert trainer.global_step == BATCHES
    return module, ema, watch


def layer(name, genotype):
    """Which layer a weight is of, counted from the image: the stem, each block, the classifier."""
    part, *rest = name.split(".")
    before = [0]
    for stage in genotype.stages:
        before.append(before[-1] + len(stage))
    if part == "stem":
        return 0
    if part == "stages":
        return 1 + before[int(rest[0])] + (int(rest[2]) if rest[1] == "blocks" else 0)
    return before[-1] + (part == "head")  # the last norm goes with the last block


def test_each_block_learns_by_a_rate_of_its_own():
    module, _, watch = fitted(Recipe(**COMMON, layer_decay=0.5, min_lr=0.0))
    assert watch.base == pytest.approx([1e-3, 0.75e-3, 0.25e-3, 0.0])  # of a cosine, as without layer decay
    module, _, watch = fitted(Recipe(**COMMON | {"epochs": 2}, layer_decay=0.5, min_lr=1e-3), limit_train_batches=2)
    network = module.model
    last = sum(map(len, network.genotype.stages)) + 1
    for name, parameter in network.named_parameters():
        distance = last - layer(name, network.genotype)
        assert watch.rates[id(parameter)] == pytest.approx(1e-3 * 0.5**distance), name
        bare = parameter.ndim <= 1 or "attention_biases" in name
        assert watch.decays[id(parameter)] == (0.0 if bare else 0.02), name


@pytest.mark.parametrize(("freeze", "how"), [(1, {}), (2, {"clip_mode": "agc"}), (4, {"layer_decay": 0.5})])
def test_frozen_stages_stay_as_they_are(freeze, how):
    module, ema, watch = fitted(Recipe(**COMMON, **how, freeze=freeze, drop_path=0.2, weight_decay=0.1))
    network = module.model
    frozen = ("stem.", *(f"stages.{stage}." for stage in range(freeze)))
    for name, value in network.state_dict().items():
        same = torch.equal(value, watch.before[name])
        if name.startswith(frozen):
            assert same and torch.equal(ema.ema.module.state_dict()[name], value), name
        elif name.endswith(("conv.weight", "head.weight", "running_mean")):
            assert not same, name
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (id(parameter) in watch.rates) == (not name.startswith(frozen)), name
        assert parameter.requires_grad or parameter.grad is None
    for name, part in network.named_modules():
        if isinstance(part, DropPath | nn.BatchNorm2d):
            assert part.training != name.startswith(frozen), name


def test_synchronised_norms_stay_frozen_too():
    recipe = Recipe(**COMMON, freeze=2)
    module = ESFormerModule(Genotype.shipped("efficientformerv2_s0"), recipe, num_classes=10, img_size=32)
    module.model = convert_sync_batchnorm(module.model)  # as a Trainer with GPUs does
    module.train()
    norms = {name: part for name, part in module.model.named_modules() if isinstance(part, nn.SyncBatchNorm)}
    assert {name.partition(".")[0] for name in norms} == {"stem", "stages", "norm"}
    for name, norm in norms.items():
        assert norm.training != name.startswith(("stem.", "stages.0.", "stages.1.")), name
        assert norm.weight.requires_grad == norm.training


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(layer_decay=0.0), "layer_decay is 0.0; it must be above 0 and at most 1"),
        (dict(layer_decay=1.5), "layer_decay is 1.5; it must be above 0 and at most 1"),
        (dict(layer_decay=float("nan")), "layer_decay is nan"),
        (dict(freeze=7), "freeze is 7; it must be from 0 to the 4 stages"),
        (dict(freeze=-1), "freeze is -1; it must be from 0 to the 4 stages"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ESFormerError, match=message):
        Recipe(**wrong)
