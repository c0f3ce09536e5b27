"""Table 2, and a running module that follows it."""

import math

import pytest
import torch
from lightning import Trainer
from timm.layers import DropPath
from timm.loss import BinaryCrossEntropy

from configs.compose import compose
from esformer.data.datamodule import ImageDataModule
from esformer.data.datasets import DataConfig
from esformer.data.mixup import GROUP, GroupMixup
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule

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
    module.on_train_start()
    module.log = lambda *args, **kwargs: None
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
    assert type(module.loss) is BinaryCrossEntropy
    assert (module.loss.smoothing, module.loss.reduction, module.loss.target_threshold) == (0.1, "mean", None)
    blocks = [block for stage in module.model.stages for block in stage.blocks]
    for number, block in enumerate(blocks):
        rates = {m.drop_prob for m in block.modules() if isinstance(m, DropPath)} or {0.0}
        assert list(rates) == [pytest.approx(recipe.drop_path * number / (len(blocks) - 1))], number
    assert configured["lr_scheduler"]["interval"] == "step"


@pytest.mark.parametrize("size", ["S0", "S2"])
def test_the_learning_rate_of_every_epoch(size, monkeypatch):
    """That of the optimiser as its scheduler goes on: 2e-3 after 20 linear epochs, then a cosine to 1e-5 at the end."""
    per_epoch = 5
    module, trainer = attached(compose(size).recipe)
    monkeypatch.setattr(type(trainer), "estimated_stepping_batches", 300 * per_epoch)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(300 * per_epoch):
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    last = 300 * per_epoch - 1
    for epoch in range(300):
        step = epoch * per_epoch
        turn = math.pi * (step - 20 * per_epoch) / (last - 20 * per_epoch)
        want = 1e-6 + (2e-3 - 1e-6) * epoch / 20 if epoch < 20 else 1e-5 + (2e-3 - 1e-5) * (1 + math.cos(turn)) / 2
        assert rates[step] == pytest.approx(want), epoch
    assert max(rates) == rates[20 * per_epoch] == pytest.approx(2e-3)
    assert rates[-1] == pytest.approx(1e-5)


@pytest.mark.parametrize(("size", "augment", "erasing"), [("S0", 7, 0.0), ("S2", 9, 0.25)])
def test_the_transforms_follow_the_recipe(size, augment, erasing):
    recipe = compose(size).recipe
    recipe.batch_size = 64
    data = ImageDataModule(DIGITS, recipe)
    data.setup("fit")
    steps = {type(step).__name__: step for step in data.train_set.dataset.transform.transforms}
    rand = steps["RandAugment"]
    assert (rand.num_layers, {op.magnitude for op in rand.ops}) == (1, {augment})
    assert (data.erasing is not None) == (erasing > 0)
    if erasing:
        timms = data.erasing.erasing
        assert (timms.probability, timms.per_pixel, timms.min_count, timms.max_count) == (erasing, True, 1, 1)
    mixup = data.mixup.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (mixup.label_smoothing, mixup.mode) == (0.1, "batch")


def test_mixup_and_cutmix_take_turns():
    """Of 400 groups: all are mixed, half of them by CutMix, whose images are patched and not blended."""
    mixup = GroupMixup(Recipe(), 10, seed=0)
    cut = 0
    for group in range(400):
        images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
        shares = mixup(images, torch.tensor([1, 2]), epoch=0, position=group * GROUP)
        kept = images[1].mean().item()
        cut += set(images.unique().tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(shares[1, 2].item(), 0.01 + 0.9 * kept, rtol=0, atol=1e-3)
    assert cut == pytest.approx(200, abs=30)


def test_adaptive_clipping_spares_the_classifier():
    module, _ = attached(Recipe(epochs=1, warmup_epochs=0, clip_grad=0.01, clip_mode="agc"))
    for parameter in module.model.parameters():
        parameter.grad = torch.ones_like(parameter) * 100
    module.configure_gradient_clipping(torch.optim.AdamW(module.parameters(), fused=True))
    assert module.model.head.weight.grad.eq(100).all()
    conv = module.model.stem.conv1.conv.weight
    norms = conv.grad.flatten(1).norm(dim=1), conv.detach().flatten(1).norm(dim=1).clamp(min=1e-3)
    torch.testing.assert_close(norms[0], 0.01 * norms[1], rtol=1e-4, atol=0)


def test_norm_clipping():
    module, _ = attached(Recipe(epochs=1, warmup_epochs=0))
    for parameter in module.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.configure_gradient_clipping(torch.optim.AdamW(module.parameters(), fused=True))
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
