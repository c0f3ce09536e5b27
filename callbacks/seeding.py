"""Randomness that depends on where training is, not on how it came there."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from esformer.training.data import seed_all


class StepSeed(Callback):
    """Seeds every training batch from seed, epoch, batch and rank: a resumed run draws what it would have drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_all(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(torch.initial_seed())  # of the other devices, too
