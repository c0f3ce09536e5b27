"""The training loop of timm, for `pipelines.timing.throughput` to measure ours against.

What `train.py` of timm 1.0 does (https://github.com/huggingface/pytorch-image-models/blob/main/train.py, `main` and
`train_one_epoch`, Apache-2.0), made of timm's public parts and set to the recipe, as if called with:

    train.py --model esformer_s0 --channels-last --opt adamw --bce-loss --model-ema --model-ema-warmup
        --sched-on-updates [--amp --amp-dtype bfloat16] [--torchcompile], and the values of Table 2
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch
from timm import utils
from timm.data import FastCollateMixup, Mixup, create_loader
from timm.data.loader import PrefetchLoader
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

import esformer.model.registry
from esformer.data.datasets import DataConfig
from esformer.data.images import build
from esformer.genotype import Genotype
from esformer.recipe import Recipe

log = logging.getLogger("esformer")

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TimmTraining:
    """The network of a genotype, and everything that train.py makes to train it.

    Args:
        genotype: the architecture.
        recipe: Table 2; its batch size is not looked at, a batch is what comes.
        data: size, classes and normalisation of the images.
        updates_per_epoch: steps of an epoch, for the learning rate.
        device: on which to train.
        bf16: automatic mixed precision.
        accumulate: batches that are accumulated into one step.
        compile: compile the network.
    """

    def __init__(
        self,
        genotype: Genotype,
        recipe: Recipe,
        data: DataConfig,
        updates_per_epoch: int,
        device: torch.device,
        bf16: bool = False,
        accumulate: int = 1,
        compile: bool = False,
    ) -> None:
        self.recipe, self.data, self.device, self.accumulate = recipe, data, device, accumulate
        name = f"esformer_{genotype.space.partition('-')[0].lower()}"
        assert name in esformer.model.registry.default_cfgs
        self.model = timm.create_model(
            name,
            genotype=genotype,
            num_classes=data.num_classes,
            img_size=data.img_size,
            drop_path_rate=recipe.drop_path,
        )
        self.model.to(device=device)
        self.model.to(memory_format=torch.channels_last)
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        if bf16:
            self.autocast = partial(torch.autocast, device_type=device.type, dtype=torch.bfloat16)
        self.loss = BinaryCrossEntropy(smoothing=recipe.smoothing)
        self.ema = utils.ModelEmaV3(self.model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema else None
        self.network: nn.Module = torch.compile(self.model) if compile else self.model  # type: ignore[assignment]
        layers = dict(layer_decay=recipe.layer_decay) if recipe.layer_decay < 1 else {}
        self.optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay, **layers
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
        self.updates = 0

    def loader(self, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
        """The loader of timm, of the configured images: Mixup in the workers, normalised and erased on the device."""
        d, r = self.data, self.recipe
        loader: Iterable[tuple[Tensor, Tensor]] = create_loader(
            build(replace(d, decoder="pil"), True, None),  # type: ignore[arg-type]
            input_size=(3, d.img_size, d.img_size),
            batch_size=batch_size,
            is_training=True,
            re_prob=r.random_erasing,
            re_mode="pixel",
            scale=(d.crop_scale[0], d.crop_scale[1]),
            ratio=(d.crop_ratio[0], d.crop_ratio[1]),
            hflip=d.hflip,
            color_jitter=0.0,
            auto_augment=r.auto_augment,
            interpolation=d.interpolation,
            mean=tuple(d.mean),
            std=tuple(d.std),
            num_workers=d.loaders,
            collate_fn=self._mixing(FastCollateMixup),
            pin_memory=self.device.type == "cuda",
            device=self.device,
            persistent_workers=d.loaders > 0,
        )
        return loader

    def in_memory(self, images: Tensor, targets: Tensor) -> Iterator[float]:
        """The steps on one batch again and again, by timm's prefetcher; mixed as with train.py's `--no-prefetcher`.

        Args:
            images: bytes, B, 3, H, W.
            targets: their classes, B.
        """
        again: Any = itertools.repeat((images, targets))
        mean, std = tuple(self.data.mean), tuple(self.data.std)
        loader = PrefetchLoader(
            again, mean, std, device=self.device, re_prob=self.recipe.random_erasing, re_mode="pixel"
        )
        return self.steps(loader, self._mixing(Mixup))

    def _mixing(self, kind: type[Mixup]) -> Any:
        r = self.recipe
        if not r.mixes:
            return None
        return kind(
            mixup_alpha=r.mixup,
            cutmix_alpha=r.cutmix,
            prob=r.mixup_prob,
            switch_prob=r.mixup_switch_prob,
            label_smoothing=r.smoothing,
            num_classes=self.data.num_classes,
        )

    def steps(
        self, loader: Iterable[tuple[Tensor, Tensor]], mixup: Mix | None = None, log_interval: int = 50
    ) -> Iterator[float]:
        """`train_one_epoch`, epoch after epoch: yields the loss of each update, after all that belongs to it.

        Args:
            loader: normalised images on the device, and targets.
            mixup: what still mixes them.
            log_interval: updates between two lines.
        """
        losses, update_time, data_time = utils.AverageMeter(), utils.AverageMeter(), utils.AverageMeter()
        self.network.train()
        self.optimizer.zero_grad()
        waiting = began = time.time()
        for number, (images, targets) in enumerate(itertools.chain.from_iterable(itertools.repeat(loader)), 1):
            if mixup is not None:
                images, targets = mixup(images, targets)
            images = images.contiguous(memory_format=torch.channels_last)
            data_time.update(self.accumulate * (time.time() - waiting))
            with self.autocast():
                loss = self.loss(self.network(images), targets)
                if self.accumulate > 1:
                    loss = loss / self.accumulate
            loss.backward()
            losses.update(loss.item() * self.accumulate, len(images))
            if number % self.accumulate == 0:
                self._update()
                update_time.update(time.time() - began)
                began = time.time()
                if self.updates % log_interval == 0:
                    rates = [group["lr"] for group in self.optimizer.param_groups]
                    values = (losses.val, losses.avg, update_time.avg, data_time.avg, sum(rates) / len(rates))
                    log.debug("Train: loss %.3g (%.3g), time %.3f, data %.3f, lr %.3e", *values)
                self.scheduler.step_update(num_updates=self.updates, metric=losses.avg)
                yield losses.val
            waiting = time.time()

    def _update(self) -> None:
        r = self.recipe
        if r.clip_grad > 0:
            parameters = list(self.model.parameters())
            utils.dispatch_clip_grad(parameters[:-2] if r.clip_mode == "agc" else parameters, r.clip_grad, r.clip_mode)
        self.optimizer.step()
        self.updates += 1
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)
