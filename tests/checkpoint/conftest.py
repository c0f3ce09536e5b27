"""A checkpoint that the training wrote, and one of each kind made of it."""

import pytest
import torch
from lightning import Trainer
from quiet import QUIET

from callbacks.ema import EMA
from esformer.checkpoint import open_checkpoint
from esformer.choices import choices_of
from esformer.data.datamodule import ImageDataModule
from esformer.data.datasets import DataConfig
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule

RECIPE = Recipe(epochs=1, warmup_epochs=0, batch_size=16, lr=1e-3)


@pytest.fixture(scope="session")
def genotype():
    """Whose genes all have the first of their values: the smallest, with blocks that differ in width."""
    stages = [[{gene: values[0] for gene, values in block.items()} for block in s] for s in choices_of("S0").options]
    stages[1][1] |= {"ffn": "convnext", "kernel": 5, "out": 32}
    return Genotype.from_dict({"genotype": 1, "space": "S0", "stages": stages})


@pytest.fixture(scope="session")
def trained(tmp_path_factory, genotype):
    """Of three steps of digits at 64 pixels, whose attention has positions enough to tell."""
    torch.manual_seed(0)
    provenance = {"command": "python -m pipelines.full", "search_evaluations": 510}
    module = ESFormerModule(genotype, RECIPE, num_classes=10, img_size=64, provenance=provenance)
    data = ImageDataModule(DataConfig("digits", img_size=64, num_classes=10, crop_pct=0.9, workers=0), RECIPE)
    trainer = Trainer(
        **QUIET,
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=1,
        callbacks=[EMA(decay=0.5)],
    )
    trainer.fit(module, data)
    path = tmp_path_factory.mktemp("trained") / "last.ckpt"
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def content(trained):
    """What is in it, as PyTorch reads it; not to be changed."""
    return torch.load(trained, weights_only=True)


@pytest.fixture(scope="session")
def known(trained):
    """What is in it, as we read it; not to be changed."""
    return open_checkpoint(trained)
