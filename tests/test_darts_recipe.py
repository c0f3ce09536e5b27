"""The recipes of DARTS, value by value, and a running module that follows them.

Sources: cnn/train.py, cnn/train_imagenet.py and cnn/utils.py of https://github.com/quark0/darts, by argument or name.
"""

import math

import numpy as np
import pytest
import torch
from torch.optim import SGD
from torchvision.transforms import ColorJitter, RandomCrop, RandomHorizontalFlip

from configs.compose import ADDED, compose
from configs.explain import settings
from esformer.benchmarks.architecture import GeneArchitecture
from esformer.data.datamodule import ImageDataModule
from esformer.data.datasets import DataConfig
from esformer.data.decoding import training_transform
from esformer.data.mixup import ImageCutout
from esformer.recipe import Recipe
from esformer.training.losses import CrossEntropy, loss_of
from esformer.training.module import ESFormerModule, lr_factor, optimizer_of

CIFAR = {  # train.py
    "batch_size": 96,  # --batch_size
    "lr": 0.025,  # --learning_rate
    "momentum": 0.9,  # --momentum
    "weight_decay": 3e-4,  # --weight_decay
    "epochs": 600,  # --epochs
    "auxiliary": 0.4,  # --auxiliary --auxiliary_weight
    "cutout": 16,  # --cutout --cutout_length
    "drop_path": 0.2,  # --drop_path_prob
    "drop_path_schedule": "epochs",  # model.drop_path_prob = args.drop_path_prob * epoch / args.epochs
    "clip_grad": 5.0,  # --grad_clip
    "clip_mode": "norm",  # clip_grad_norm
    "optimizer": "sgd",  # torch.optim.SGD
    "schedule": "cosine",  # CosineAnnealingLR(optimizer, args.epochs)
    "min_lr": 0.0,  # eta_min
    "loss": "ce",  # nn.CrossEntropyLoss
    "smoothing": 0.0,
    "crop_padding": 4,  # utils.py: RandomCrop(32, padding=4)
}
IMAGENET = {  # train_imagenet.py
    "batch_size": 128,  # --batch_size
    "lr": 0.1,  # --learning_rate
    "momentum": 0.9,  # --momentum
    "weight_decay": 3e-5,  # --weight_decay
    "epochs": 250,  # --epochs
    "auxiliary": 0.4,  # --auxiliary --auxiliary_weight
    "drop_path": 0.0,  # --drop_path_prob
    "clip_grad": 5.0,  # --grad_clip
    "clip_mode": "norm",  # clip_grad_norm
    "smoothing": 0.1,  # --label_smooth
    "optimizer": "sgd",  # torch.optim.SGD
    "schedule": "exponential",  # StepLR(optimizer, args.decay_period, gamma=args.gamma)
    "lr_decay": 0.97,  # --gamma, --decay_period 1
    "loss": "ce",  # CrossEntropyLabelSmooth
    "color_jitter": [0.4, 0.4, 0.4, 0.2],  # ColorJitter(brightness, contrast, saturation, hue)
    "crop_padding": 0,  # RandomResizedCrop(224)
    "cutout": 0,
}
NOTHING_ELSE = {"warmup_epochs": 0, "mixup": 0.0, "cutmix": 0.0, "auto_augment": None, "random_erasing": 0.0}
NOTHING_ELSE |= {"ema": False, "layer_decay": 1.0, "freeze": 0}
NOTATION = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('skip_connect', 0), ('dil_conv_3x3', 1), "
    "('max_pool_3x3', 0), ('skip_connect', 1), ('skip_connect', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
SMALL = GeneArchitecture("darts", NOTATION, channels=4, layers=5)
DIGITS = DataConfig("digits", img_size=32, num_classes=10, workers=0)


def recipe(name, *settings):
    return compose(overrides=[f"recipe={name}", *settings]).recipe


@pytest.mark.parametrize(("name", "published"), [("darts", CIFAR), ("darts-imagenet", IMAGENET)])
def test_each_value_is_the_published_one(name, published):
    found = recipe(name).to_dict()
    wanted = published | NOTHING_ELSE
    assert {key: found[key] for key in wanted} == wanted


def test_images_are_prepared_as_published():
    cifar10, cifar100, imagenet = (compose(overrides=[f"data={name}"]).data for name in DATA)
    mean, std = [0.49139968, 0.48215827, 0.44653124], [0.24703233, 0.24348505, 0.26158768]  # CIFAR_MEAN, CIFAR_STD
    assert np.allclose(cifar10.mean, mean, atol=6e-5) and np.allclose(cifar10.std, std, atol=6e-5)  # to four digits
    assert (cifar10.hflip, cifar10.crop_pct, cifar10.img_size) == (0.5, 1.0, 32)
    assert (cifar100.num_classes, cifar100.hflip, cifar100.crop_pct, cifar100.img_size) == (100, 0.5, 1.0, 32)
    assert (imagenet.mean, imagenet.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # Normalize
    assert (imagenet.crop_scale, imagenet.crop_ratio, imagenet.hflip) == ([0.08, 1.0], [3 / 4, 4 / 3], 0.5)


DATA = ("cifar10", "cifar100", "imagenet")


def test_what_was_added_changes_nothing_for_older_runs():
    new = {s.key: s.default for s in settings() if s.key in ADDED and s.key.startswith("recipe.")}
    assert {key: ADDED[key] for key in new} == new and len(new) == 12


def test_weights_decay_all_and_momentum_is_plain():
    module = ESFormerModule(SMALL, recipe("darts"), 10, 32)
    optimizer = optimizer_of(module.model, module.recipe)
    (group,) = optimizer.param_groups
    assert type(optimizer) is SGD and {id(p) for p in group["params"]} == {id(p) for p in module.model.parameters()}
    facts = (group["lr"], group["momentum"], group["weight_decay"], group["dampening"], group["nesterov"])
    assert facts == (0.025, 0.9, 3e-4, 0, False)


def test_momentum_from_zero_is_that_of_pytorch():
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    wanted = SGD(theirs.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    found = optimizer_of(ours, recipe("darts"))
    for _ in range(3):
        for network, optimizer in ((ours, found), (theirs, wanted)):
            optimizer.zero_grad()
            network(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_the_learning_rate_of_every_epoch():
    cifar, imagenet = recipe("darts"), recipe("darts-imagenet")
    for epoch in range(600):
        want = (1 + math.cos(math.pi * epoch / 600)) / 2
        assert lr_factor(520 * epoch, 520 * 600, cifar) == pytest.approx(want, abs=2e-5)  # there it falls by epochs
    assert lr_factor(520 * 600 - 1, 520 * 600, cifar) == pytest.approx(0)
    for epoch in range(250):
        for step in (0, 1, 9):
            assert lr_factor(10 * epoch + step, 2500, imagenet) == pytest.approx(0.97**epoch)


def test_paths_are_dropped_more_with_each_epoch():
    module = ESFormerModule(SMALL, recipe("darts"), 10, 32, seed=1)
    positions = np.arange(4000)
    for epoch, rate in ((0, 0.0), (300, 0.1), (599, 0.2 * 599 / 600)):
        module.paths.draw(np.stack([np.full(4000, epoch), positions, positions], axis=1), torch.device("cpu"))
        scales = torch.stack([path.scale.flatten() for path in module.paths.paths])
        assert (scales == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
        assert scales.max().item() == pytest.approx(1 / (1 - rate))


def test_the_loss_is_that_of_both_classifiers():
    module = ESFormerModule(SMALL, recipe("darts"), 10, 32)
    logits, auxiliary = torch.randn(2, 6, 10)
    targets = torch.arange(6)
    plain = torch.nn.CrossEntropyLoss()
    want = plain(logits, targets) + 0.4 * plain(auxiliary, targets)
    torch.testing.assert_close(module._loss((logits, auxiliary), targets), want)
    torch.testing.assert_close(module._loss(logits, targets), plain(logits, targets))


def test_smoothing_is_the_authors_and_mixed_targets_have_theirs():
    loss = loss_of(recipe("darts-imagenet"))
    assert type(loss) is CrossEntropy and loss.smoothing == 0.1
    logits, targets = torch.randn(6, 10), torch.arange(6)
    smooth = 0.9 * torch.nn.functional.one_hot(targets, 10) + 0.1 / 10
    want = (-smooth * logits.log_softmax(1)).mean(0).sum()
    torch.testing.assert_close(loss(logits, targets), want)
    torch.testing.assert_close(loss(logits, smooth), want)


def test_the_crop_is_out_of_a_black_frame():
    config = compose(overrides=["data=cifar10"]).data
    resize, crop, flip, *rest = training_transform(config, None, crop_padding=4).transforms
    assert type(crop) is RandomCrop and (crop.size, crop.padding, crop.fill) == ((32, 32), 4, 0)
    assert type(flip) is RandomHorizontalFlip and flip.p == 0.5 and len(rest) == 2  # a jitter by 0 does nothing
    image = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(resize(image), image)
    assert resize(torch.zeros(3, 64, 48, dtype=torch.uint8)).shape[-1] == 32
    shares = [(training_transform(config, None, crop_padding=4)(image) > 0).float().mean().item() for _ in range(50)]
    assert min(shares) >= (28 / 32) ** 2 and len(set(shares)) > 5


def test_colours_vary_as_published():
    config = compose(overrides=["data=imagenet"]).data
    transform = training_transform(config, None, recipe("darts-imagenet").color_jitter)
    (jitter,) = (step for step in transform.transforms if type(step) is ColorJitter)
    span = (0.6, 1.4)
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (span, span, span, (-0.2, 0.2))
    image = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    assert transform(image).shape == (224, 224, 3)


def cut_as_published(height, width, y, x, length):
    """utils.py: Cutout."""
    mask = np.ones((height, width), np.float32)
    y1, y2 = np.clip(y - length // 2, 0, height), np.clip(y + length // 2, 0, height)
    x1, x2 = np.clip(x - length // 2, 0, width), np.clip(x + length // 2, 0, width)
    mask[y1:y2, x1:x2] = 0.0
    return mask


def test_cutout_is_the_authors_and_depends_on_the_image_alone():
    cutout, numbers = ImageCutout(16, seed=5), [3, 1, 4, 15, 9, 2, 6]
    images = torch.ones(7, 3, 32, 24)
    cutout(images, 2, numbers)
    every = {cut_as_published(32, 24, y, x, 16).tobytes() for y in range(32) for x in range(24)}
    assert all(image[0].numpy().tobytes() in every and image.amax(0).equal(image.amin(0)) for image in images)
    again = torch.ones(2, 3, 32, 24)
    cutout(again, 2, [15, 2])
    assert torch.equal(again, images[[3, 5]])
    other = torch.ones(7, 3, 32, 24)
    cutout(other, 3, numbers)
    assert not torch.equal(other, images)


def test_cutout_centres_are_uniform():
    images = torch.ones(3000, 1, 8, 8)
    ImageCutout(2, seed=0)(images, 0, list(range(3000)))
    hidden = (images == 0).float().mean((0, 1))
    assert hidden[:7, :7].sub(4 / 64).abs().max() < 0.02 and hidden[7, 7].sub(1 / 64).abs() < 0.02


def test_a_batch_of_training_is_cut_and_one_of_validation_is_not():
    data = ImageDataModule(DIGITS, recipe("darts"), seed=0)
    data.setup("fit")
    data.config.workers = 0
    batch = next(iter(data.train_dataloader()))
    cut = data.on_after_batch_transfer(batch, 0)
    plain = data.normalise(batch.images)
    hidden = (cut.images == 0).all(1).flatten(1).float().mean(1)
    assert cut.targets.equal(batch.targets) and cut.images.shape == (96, 3, 32, 32)
    assert hidden.min() >= 64 / 1024 and hidden.max() <= 257 / 1024 and not plain.equal(cut.images)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(optimizer="adam"),
        dict(schedule="step"),
        dict(loss="mse"),
        dict(drop_path_schedule="cells"),
        dict(momentum=1.0),
        dict(lr_decay=0.0),
        dict(cutout=5),
        dict(cutout=-2),
        dict(crop_padding=-1),
        dict(auxiliary=float("nan")),
        dict(color_jitter=[0.4]),
        dict(color_jitter=[0.4, 0.4, 0.4, 0.6]),
        dict(color_jitter=[0.4, 0.4, 0.4, 0.2]),  # with RandAugment
        dict(optimizer="sgd", layer_decay=0.9),
    ],
)
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(reversed(wrong)))):
        Recipe(**wrong)


def test_a_first_step_that_is_skipped_leaves_the_moments_at_zero():
    network = torch.nn.Linear(3, 2)
    before = network.weight.clone()
    optimizer = optimizer_of(network, recipe("darts"), fused=True)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(network.weight, before)
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())
