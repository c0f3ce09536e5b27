"""Table 2: how an ESFormer is trained. The defaults are its column for S0 and S1; other networks have other recipes."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from esformer.errors import ESFormerError

STAGES = 4
"""Of every ESFormer."""

MOST = {"epochs": 1_000_000, "batch_size": 2**20}
"""Upper bounds of settings that count: so many steps are still numbered exactly, and their dates exist."""
WORDS = {
    "clip_mode": ("norm", "value", "agc"),
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "exponential"),
    "loss": ("bce", "ce"),
    "drop_path_schedule": ("depth", "epochs"),
}
"""Allowed values of the settings that are words."""
LARGEST = {"crop_padding": 1024, "cutout": 2048}
"""Upper bounds of settings in pixels."""


@dataclass
class Recipe:
    """The training hyper-parameters of Table 2, and what it leaves open (said at the field).

    These defaults are the library's; the commands take those of `configs/recipe/`.
    """

    epochs: int = 300
    """Passes over the training images."""
    batch_size: int = 1024
    """Images a step over all devices and accumulated batches together."""
    lr: float = 2e-3
    """Learning rate after the warm-up."""
    warmup_epochs: int = 20
    """Epochs in which the learning rate rises linearly."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step (not in the table; EfficientFormer's)."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine, and the least of all (not in the table; EfficientFormer's)."""
    schedule: str = "cosine"
    """What the learning rate does after the warm-up: `cosine`, step by step, or `exponential`: times lr_decay after
    each epoch (not in the table)."""
    lr_decay: float = 0.97
    """Of the exponential schedule (not in the table; DARTS's on ImageNet)."""
    optimizer: str = "adamw"
    """`adamw` or `sgd` (not in the table)."""
    momentum: float = 0.9
    """Of SGD (not in the table)."""
    weight_decay: float = 0.02
    """AdamW: decoupled, none on biases, norms, LayerScale and attention biases. SGD: on all weights, as in DARTS."""
    layer_decay: float = 1.0
    """For fine-tuning: the learning rate of each block, as a share of that of the block behind it; the classifier has
    the whole of it (not in the table). 1 is the same for all."""
    freeze: int = 0
    """For fine-tuning: stages that are not trained, counted from the image; the stem goes with the first (not in the
    table)."""
    clip_grad: float = 2.0
    """Gradient clipping: the largest norm, or the ratio to the weights for agc; 0 is none."""
    clip_mode: str = "norm"
    """`norm`, `value` or `agc` (adaptive, which S2's 0.01 is in EfficientFormer's code)."""
    mixup: float = 0.8
    """Alpha of Mixup; 0 is none."""
    cutmix: float = 1.0
    """Alpha of CutMix; 0 is none."""
    mixup_prob: float = 1.0
    """Share of batches that are mixed (not in the table; timm's default)."""
    mixup_switch_prob: float = 0.5
    """Share of the mixed batches that CutMix gets (not in the table; timm's default)."""
    crop_padding: int = 0
    """Black pixels around the image, out of which a training crop of data.img_size is then taken, not resized; 0 takes
    random resized crops (not in the table)."""
    color_jitter: list[float] = field(default_factory=list)
    """How far brightness, contrast, saturation and hue vary: four numbers; [] is not at all (not in the table)."""
    auto_augment: str | None = "rand-m7-n1"
    """RandAugment in timm's notation: magnitude 7, one operation; null is none."""
    random_erasing: float = 0.0
    """Share of images in which a random rectangle is erased."""
    cutout: int = 0
    """Side in pixels of a square of every training image that is made 0, its centre anywhere (not in the table)."""
    drop_path: float = 0.05
    """Stochastic depth of the last block; it grows linearly along the network."""
    drop_path_schedule: str = "depth"
    """`depth`, as said; or `epochs`, the same for all paths, and growing from 0 with the epochs (not in the table)."""
    loss: str = "bce"
    """`bce`, binary cross-entropy of each class, or `ce`, the cross-entropy of all (not in the table)."""
    smoothing: float = 0.1
    """Label smoothing."""
    auxiliary: float = 0.0
    """Weight of the loss of an auxiliary classifier, for networks that have one; 0 trains none (not in the table)."""
    ema: bool = True
    """Keep an exponential moving average of the weights (not in the table; this project's addition)."""
    ema_decay: float = 0.9999
    """Decay of the average; in the first steps 1 - (1 + step)^-2/3 where that is less."""

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ESFormerError(f"{name} is {getattr(self, name)}; it must be at most {most}")
        if self.epochs < 1:
            raise ESFormerError(f"epochs is {self.epochs}; it must be at least 1")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ESFormerError(f"warmup_epochs is {self.warmup_epochs}; it must be from 0 to the {self.epochs} epochs")
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                *head, last = words
                raise ESFormerError(f"{name} is {getattr(self, name)!r}; it must be {', '.join(head)} or {last}")
        if self.batch_size < 2 or (self.mixes and self.batch_size % 2):
            raise ESFormerError(f"batch_size is {self.batch_size}; it must be an even number, for Mixup pairs images")
        for name in ("mixup", "cutmix", "clip_grad", "weight_decay", "warmup_lr", "min_lr", "auxiliary"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ESFormerError(f"{name} is {getattr(self, name)}; it must be a number, not below 0")
        for name in ("mixup_prob", "mixup_switch_prob", "random_erasing", "drop_path", "smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ESFormerError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("layer_decay", "lr_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ESFormerError(f"{name} is {getattr(self, name)}; it must be above 0 and at most 1")
        if self.optimizer == "sgd" and self.layer_decay < 1:
            raise ESFormerError(f"layer_decay is {self.layer_decay}; with optimizer=sgd it must be 1")
        if not 0 <= self.momentum < 1:
            raise ESFormerError(f"momentum is {self.momentum}; it must be from 0 to below 1")
        for name, most in LARGEST.items():
            if not 0 <= getattr(self, name) <= most:
                raise ESFormerError(f"{name} is {getattr(self, name)}; it must be from 0 to {most} pixels")
        if self.cutout % 2:
            raise ESFormerError(f"cutout is {self.cutout}; it must be even, for its half is to each side of the centre")
        self._check_jitter()
        if not 0 <= self.freeze <= STAGES:
            raise ESFormerError(f"freeze is {self.freeze}; it must be from 0 to the {STAGES} stages")
        if not 0 < self.lr < math.inf:
            raise ESFormerError(f"lr is {self.lr}; it must be above 0")
        if max(self.min_lr, self.warmup_lr) > self.lr:
            raise ESFormerError(f"lr is {self.lr}; min_lr and warmup_lr must not be above it")

    def _check_jitter(self) -> None:
        jitter, hue = self.color_jitter, self.color_jitter[3:]
        right = len(jitter) in (0, 4) and all(0 <= value <= 10 for value in jitter) and all(h <= 0.5 for h in hue)
        if not right:
            raise ESFormerError(
                f"color_jitter is {jitter}; it must be four numbers, not below 0 and the last at most 0.5, or []"
            )
        if jitter and self.auto_augment:
            raise ESFormerError(f"color_jitter is {jitter}; it needs auto_augment=null, which changes colours, too")

    @property
    def mixes(self) -> bool:
        """Whether Mixup or CutMix is on."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as a checkpoint keeps them."""
        return asdict(self)
