"""ESFormerModule: an ESFormer and Table 2 as a LightningModule."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils.clip_grad import dispatch_clip_grad
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer
from esformer.training.data import IGNORE
from esformer.training.recipe import Recipe


class ESFormerModule(LightningModule):
    """Trains the network of a genotype by a recipe. All that it needs to be built again lies in its checkpoints.

    Args:
        genotype: the architecture, or its `to_dict`.
        recipe: Table 2, or its `to_dict`.
        num_classes: classes of the images.
        img_size: their height and width in pixels.
        provenance: whatever should travel with the weights, such as the search that found the genotype.
    """

    def __init__(
        self,
        genotype: Genotype | dict[str, Any],
        recipe: Recipe | dict[str, Any],
        num_classes: int = 1000,
        img_size: int = 224,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        genotype = genotype if isinstance(genotype, Genotype) else Genotype.from_dict(genotype)
        recipe = recipe if isinstance(recipe, Recipe) else Recipe(**recipe)
        self.save_hyperparameters(  # plain containers, so that the checkpoint loads with weights_only
            dict(
                genotype=genotype.to_dict(),
                recipe=recipe.to_dict(),
                num_classes=num_classes,
                img_size=img_size,
                provenance=provenance or {},
            )
        )
        self.recipe = recipe
        network = ESFormer(genotype, num_classes, img_size=img_size, drop_path_rate=recipe.drop_path)
        self.model = network.to(memory_format=torch.channels_last)  # twice as fast, on the CPU too
        self.mixup = None
        if recipe.mixes:
            self.mixup = Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                prob=recipe.mixup_prob,
                switch_prob=recipe.mixup_switch_prob,
                label_smoothing=recipe.smoothing,
                num_classes=num_classes,
            )
        self.loss = BinaryCrossEntropy(smoothing=recipe.smoothing)
        self.val_loss = MeanMetric()
        self.val_accuracy = accuracies(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """B, 3, H, W -> B, num_classes"""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)  # B -> B, num_classes, smoothed
        loss = self.loss(self(images), targets)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True, batch_size=len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        broadcast_buffers(self.model)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self(images).float()
        counted = int((targets != IGNORE).sum())
        if counted:
            self.val_loss.update(F.cross_entropy(logits, targets, ignore_index=IGNORE), weight=counted)
        self.val_accuracy.update(logits, targets)
        self.log("val/loss", self.val_loss, on_epoch=True)
        self.log_dict({f"val/{name}": metric for name, metric in self.val_accuracy.items()}, on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizer = create_optimizer_v2(self.model, "adamw", self.recipe.lr, self.recipe.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, lambda step: lr_factor(step, steps, self.recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """The recipe's clipping; as in timm, adaptive clipping leaves the classifier out."""
        if self.recipe.clip_grad > 0:
            head = set(self.model.get_classifier().parameters()) if self.recipe.clip_mode == "agc" else set()
            parameters = [p for p in self.model.parameters() if p not in head]
            dispatch_clip_grad(parameters, self.recipe.clip_grad, self.recipe.clip_mode)


def broadcast_buffers(network: nn.Module) -> None:
    """Give every rank the norm statistics of rank 0, which are those that a checkpoint gets."""
    if torch.distributed.is_initialized():
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def accuracies(num_classes: int) -> MetricCollection:
    """Top-1 and top-5 over all images of all ranks; the class IGNORE is left out."""
    metrics = {
        f"top{k}": MulticlassAccuracy(num_classes, min(k, num_classes), average="micro", ignore_index=IGNORE)
        for k in (1, 5)
    }
    return MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]


def lr_factor(step: int, steps: int, recipe: Recipe) -> float:
    """The share of `lr` at a step: a linear warm-up, then a cosine to `min_lr` at the last step."""
    warmup = round(steps * recipe.warmup_epochs / recipe.epochs)
    if step < warmup:
        start = recipe.warmup_lr / recipe.lr
        return start + (1 - start) * step / warmup
    end = min(recipe.min_lr / recipe.lr, 1.0)
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2
