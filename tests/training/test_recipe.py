"""Table 2, and a running module that follows it."""

import pytest
import torch
from lightning import Trainer
from timm.layers import DropPath

from esformer.genotype import Genotype
from esformer.training.data import ImageDataModule
from esformer.training.datasets import DataConfig
from esformer.training.module import ESFormerModule, lr_factor
from esformer.training.recipe import Recipe
from pipelines.config import compose

TABLE_2 = {  # as printed; S2's clipping of 0.01 is EfficientFormer's adaptive one
    "S0": (1024, 2e-3, 300, 20, 0.02, 2.0, "norm", 0.8, 1.0, "rand-m7-n1", 0.0, 0.05, 0.1),
    "S2": (1024, 2e-3, 300, 20, 0.02, 0.01, "agc", 0.8, 1.0, "rand-m9-n1", 0.25, 0.1, 0.1),
}
ROWS = (
    "batch_size lr epochs warmup_epochs weight_decay clip_grad clip_mode"
    " mixup cutmix auto_augment random_erasing drop_path smoothing"
).split()
DIGITS = DataConfig("digits", img_size=32, num_classes=10, workers=0)


@pytest.mark.parametrize(("size", "column"), [("S0", "S0"), ("S1", "S0"), ("S2", "S2")])
def test_each_size_takes_its_column(size, column):
    recipe = compose(size).recipe
    assert tuple(getattr(recipe, row) for row in ROWS) == TABLE_2[column]


def attached(recipe, size="s0"):
    """A module as it stands before its first step."""
    module = ESFormerModule(Genotype.shipped(f"efficientformerv2_{size}"), recipe, num_classes=10, img_size=32)
    trainer = Trainer(accelerator="cpu", max_epochs=recipe.epochs, logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.fit_loop.max_batches = 5
    return module, trainer


@pytest.mark.parametrize("size", ["S0", "S2"])
def test_the_module_follows_the_recipe(size, monkeypatch):
    recipe = compose(size).recipe
    module, trainer = attached(recipe)
    monkeypatch.setattr(type(trainer), "estimated_stepping_batches", 3000)
    configured = module.configure_optimizers()
    optimizer = configured["optimizer"]
    assert type(optimizer) is torch.optim.AdamW
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.model.named_parameters():
        bare = parameter.ndim <= 1 or name.endswith(".bias") or "attention_biases" in name
        assert decays[id(parameter)] == (0.0 if bare else 0.02), name
    mixup = module.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert mixup.label_smoothing == 0.1
    rates = [m.drop_prob for m in module.model.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(recipe.drop_path)
    assert rates == sorted(rates)
    assert configured["lr_scheduler"]["interval"] == "step"


def test_learning_rate_of_every_epoch():
    recipe, per_epoch = Recipe(), 10
    steps = recipe.epochs * per_epoch
    rates = [recipe.lr * lr_factor(epoch * per_epoch, steps, recipe) for epoch in range(recipe.epochs)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[10] == pytest.approx((1e-6 + 2e-3) / 2)
    assert rates[20] == max(rates) == pytest.approx(2e-3)
    assert rates[160] == pytest.approx((2e-3 + 1e-5) / 2, rel=0.01)
    assert recipe.lr * lr_factor(steps - 1, steps, recipe) == pytest.approx(1e-5)
    assert rates[20:] == sorted(rates[20:], reverse=True)


@pytest.mark.parametrize(("size", "augment", "erasing"), [("S0", 7, 0.0), ("S2", 9, 0.25)])
def test_the_transforms_follow_the_recipe(size, augment, erasing):
    recipe = compose(size).recipe
    recipe.batch_size = 64
    data = ImageDataModule(DIGITS, recipe)
    data.setup("fit")
    steps = {type(step).__name__: step for step in data.train_set.dataset.transform.transforms}
    rand = steps["RandAugment"]
    assert (rand.num_layers, {op.magnitude for op in rand.ops}) == (1, {augment})
    assert ("RandomErasing" in steps) == (erasing > 0)
    if erasing:
        assert steps["RandomErasing"].probability == erasing


def test_adaptive_clipping_spares_the_classifier():
    module, _ = attached(Recipe(epochs=1, warmup_epochs=0, clip_grad=0.01, clip_mode="agc"))
    for parameter in module.model.parameters():
        parameter.grad = torch.ones_like(parameter) * 100
    module.configure_gradient_clipping(None)
    assert module.model.head.weight.grad.eq(100).all()
    conv = module.model.stem.conv1.conv.weight
    norms = conv.grad.flatten(1).norm(dim=1), conv.detach().flatten(1).norm(dim=1).clamp(min=1e-3)
    torch.testing.assert_close(norms[0], 0.01 * norms[1], rtol=1e-4, atol=0)


def test_norm_clipping():
    module, _ = attached(Recipe(epochs=1, warmup_epochs=0))
    for parameter in module.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.configure_gradient_clipping(None)
    total = torch.stack([p.grad.norm() for p in module.model.parameters()]).norm()
    assert total.item() == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(epochs=3, warmup_epochs=4),
        dict(clip_mode="max"),
        dict(batch_size=63),
        dict(lr=0.0),
        dict(lr=float("nan")),
        dict(drop_path=1.5),
        dict(mixup=-1.0),
        dict(clip_grad=float("nan")),
    ],
)
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(reversed(wrong)))):
        Recipe(**wrong)
