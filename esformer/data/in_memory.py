"""Batches that cost nothing to load, to measure a training by itself: its memory, and its steps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from esformer.data.datamodule import Batch, ImageDataModule


class InMemoryDataModule(ImageDataModule):
    """Random images of which all training batches are the same, but for how they are erased and mixed."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        d, size = self.config, self.batch_size
        generator = torch.Generator().manual_seed(self.seed)
        images = torch.randint(256, (size, 3, d.img_size, d.img_size), generator=generator).to(torch.uint8)
        targets = torch.randint(d.known_classes, (size,), generator=generator)
        if torch.cuda.is_available():
            images, targets = images.pin_memory(), targets.pin_memory()
        self.batch = (images, targets)
        """As timm's loader gives one: B, 3, H, W."""
        bytes_last = images.permute(0, 2, 3, 1).contiguous()
        self._ours = bytes_last.pin_memory() if torch.cuda.is_available() else bytes_last

    def train_dataloader(self) -> Any:
        return self

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        size = self.batch_size
        order = np.array(self.mixup.order(0, size) if self.mixup is not None else range(size))
        for number in range(len(self)):
            yield Batch(self._ours, self.batch[1], np.stack([np.full_like(order, number), order, order], axis=1))
