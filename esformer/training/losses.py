"""What a recipe's `loss` stands for."""

import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from esformer.recipe import Recipe


def loss_of(recipe: Recipe) -> nn.Module:
    """Takes logits, B, C, and B class numbers or, after Mixup, B, C shares that are smoothed already.

    Args:
        recipe: says which, and how far targets are smoothed.
    """
    made = BinaryCrossEntropy if recipe.loss == "bce" else CrossEntropy
    return made(smoothing=recipe.smoothing)


class CrossEntropy(nn.Module):
    """The cross-entropy of the softmax, with smoothed labels.

    Args:
        smoothing: share of each label that all classes have in equal parts.
    """

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """B, C and B or B, C -> the mean over the images."""
        smoothing = self.smoothing if targets.ndim == 1 else 0.0
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
