"""Accuracy and loss of a validation, counted without waiting for the device, as torchmetrics' own checks would."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from esformer.data.base import IGNORE


class TopK(Metric):
    """Share of the images whose class is among the k likeliest; those of the class IGNORE are left out.

    The same values as torchmetrics' `MulticlassAccuracy(average="micro", ignore_index=IGNORE)`.

    Args:
        k: how many count.
    """

    right: Tensor
    counted: Tensor

    def __init__(self, k: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.k = k
        for name in ("right", "counted"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take the logits of some images, B, C, and their classes, B."""
        likeliest = logits.argmax(1, keepdim=True) if self.k == 1 else logits.topk(self.k, dim=1).indices
        self.right += (likeliest == targets[:, None]).sum()
        self.counted += (targets != IGNORE).sum()

    def compute(self) -> Tensor:
        """The share; 0 of no images."""
        return self.right.float() / self.counted.clamp(min=1)


class MeanLoss(Metric):
    """Mean cross-entropy of the images whose class is not IGNORE; batches in which it is no number are left out."""

    total: Tensor
    counted: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name in ("total", "counted"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take the logits of some images, B, C, and their classes, B."""
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE)
        number = ~loss.isnan()  # nor is it one where no image counts
        images = number * (targets != IGNORE).sum()
        self.total += loss.where(number, 0) * images
        self.counted += images

    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.counted


def accuracies(num_classes: int) -> MetricCollection:
    """Top-1 and top-5 over all images of all ranks; the class IGNORE is left out."""
    metrics: dict[str, Any] = {f"top{k}": TopK(min(k, num_classes)) for k in (1, 5)}
    return MetricCollection(metrics, compute_groups=False)
