"""What a trained network makes of images: accuracy, loss, calibration, and which classes it takes for which.

Every figure is of all images of all ranks, each counted once, so it is the same on any number of devices: what is
counted is exact, sums are made in float64.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix, MulticlassStatScores
from torchmetrics.utilities import dim_zero_cat

from esformer.data.base import IGNORE
from esformer.data.datamodule import Batch

SHOWN = 24
"""Images that are kept to be looked at."""


@dataclass(frozen=True)
class Mistakes:
    """The images that a network is most wrong about, the one whose own class it thinks least likely first.

    Args:
        images: M, 3, H, W, as the network was shown them; M is at most 24.
        classes: M.
        taken_for: M: the likeliest class of each.
        confidence: M: the probability of that.
    """

    images: Tensor
    classes: Tensor
    taken_for: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Evaluation:
    """What a network made of images. C is the number of classes.

    Args:
        confusion: C, C: so many images of each class (rows) were taken for each class (columns).
        in_top5: C: of so many images of each class it was among the five likeliest.
        loss: mean cross-entropy of the softmax, in nats.
        calibration_error: mean distance of the likeliest class's probability from how often it is right, over 15 equal
            bins of that probability, weighted by their images (the ECE of Guo et al. 2017, arXiv:1706.04599). The
            recipe trains each output as a sigmoid, so the softmax of its networks is of little confidence at first.
        mistakes: some, to be looked at.
    """

    confusion: NDArray[np.int64]
    in_top5: NDArray[np.int64]
    loss: float
    calibration_error: float
    mistakes: Mistakes

    @property
    def images(self) -> int:
        """Images that could be read."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose class is the likeliest."""
        return int(self.confusion.trace()) / self.images

    @property
    def top5(self) -> float:
        """Share of the images whose class is among the five likeliest."""
        return int(self.in_top5.sum()) / self.images

    def per_class(self, names: list[str]) -> list[dict[str, Any]]:
        """A row a class: its images, top-1 and top-5 of these, how often it is right to name it, and what it is not.

        Shares of nothing are None. `taken_for` is the other class that most of its images were taken for, the first of
        several, or None; `taken_for_images` so many.
        """
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        rows = []
        for number, name in enumerate(names):
            right, images = int(self.confusion[number, number]), int(self.confusion[number].sum())
            other = int(wrong[number].argmax())
            times = int(wrong[number, other])
            row = {"class": name, "images": images, "top1": _share(right, images)}
            row |= {"top5": _share(int(self.in_top5[number]), images)}
            row |= {"precision": _share(right, int(self.confusion[:, number].sum()))}
            rows.append(row | {"taken_for": names[other] if times else None, "taken_for_images": times})
        return rows


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


class Evaluator(LightningModule):
    """Evaluates a network on the batches of an EvaluationDataModule; `found` is there after the validation.

    Args:
        network: B, 3, H, W -> B, num_classes.
        num_classes: at least 2.
        batch_size: so many images are shown at a time; the last ones are filled up, for convolutions round otherwise
            where there are fewer, and how many are left depends on the number of devices.
    """

    found: Evaluation

    def __init__(self, network: nn.Module, num_classes: int, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.network = network.to(memory_format=torch.channels_last)  # as it was trained
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE)
        self.top5 = MulticlassStatScores(num_classes, top_k=min(5, num_classes), average=None, ignore_index=IGNORE)
        self.loss = SummedLoss()
        self.calibration = ExactCalibrationError(num_classes, n_bins=15, norm="l1", ignore_index=IGNORE)
        self.wrongest = Wrongest()

    def forward(self, images: Tensor) -> Tensor:
        """B, 3, H, W -> B, num_classes"""
        kind = next((weight.dtype for weight in self.network.parameters()), torch.float32)
        return self.network(images.to(kind, memory_format=torch.channels_last))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        targets = batch.targets
        images = F.pad(batch.images, (0, 0) * 3 + (0, self.batch_size - len(targets)))
        logits = self(images)[: len(targets)].double()
        self.confusion.update(logits, targets)
        self.top5.update(logits, targets)
        self.loss.update(logits, targets)
        self.calibration.update(logits.softmax(1), targets)
        self.wrongest.update(batch.images, logits, targets)

    def on_validation_epoch_end(self) -> None:
        confusion = self.confusion.compute().cpu().numpy()  # `compute` is of all ranks
        in_top5 = self.top5.compute()[:, 0].cpu().numpy()
        loss, error = float(self.loss.compute()), float(self.calibration.compute())
        images, *facts = self.wrongest.compute()
        mistakes = Mistakes(images, *(fact.reshape(-1) for fact in facts))  # of one image torchmetrics makes scalars
        self.found = Evaluation(confusion, in_top5, loss / max(1, int(confusion.sum())), error, mistakes)


class SummedLoss(Metric):
    """The cross-entropy of all images together; each is kept, for Lightning would round a sum to its precision."""

    losses: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("losses", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take the float64 logits of some images, B, C, and their classes, B."""
        self.losses.append(F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none"))

    def compute(self) -> Tensor:
        """The sum."""
        return dim_zero_cat(self.losses).sum()


class Wrongest(Metric):
    """The images that are taken for another class, by the cross-entropy of their own: the highest."""

    images: list[Tensor]
    facts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", [], dist_reduce_fx="cat")
        self.add_state("facts", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Take some images, B, 3, H, W, their float64 logits, B, C, and their classes, B."""
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
        confidence, likeliest = logits.softmax(1).max(1)
        wrong = (likeliest != targets) & (targets != IGNORE)
        loss = torch.where(wrong, loss, -torch.inf)  # of what is right, so that no process is left without
        self.images.append(images.float())
        self.facts.append(torch.stack([loss, targets, likeliest, confidence], 1))
        self.images, self.facts = ([part] for part in self._worst())

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of `Mistakes`, of all processes."""
        images, facts = self._worst()
        wrong = facts[:, 0] > -torch.inf
        images, facts = images[wrong].cpu(), facts[wrong].cpu()
        return images, facts[:, 1].long(), facts[:, 2].long(), facts[:, 3]

    def _worst(self) -> tuple[Tensor, Tensor]:
        images, facts = dim_zero_cat(self.images), dim_zero_cat(self.facts)
        order = facts[:, 0].argsort(descending=True, stable=True)[:SHOWN]
        return images[order], facts[order]


class ExactCalibrationError(MulticlassCalibrationError):
    """torchmetrics' calibration error, whose sums are of float32: in float64, the order of the images does not show."""

    def compute(self) -> Tensor:
        self.confidences = [dim_zero_cat(self.confidences).double()]
        return super().compute()
