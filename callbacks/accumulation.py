"""How many batches make a step, where that is left to the memory of the devices."""

import logging
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

log = logging.getLogger("esformer")


class Accumulation(Callback):
    """Takes the most batches a step that any rank needs, and goes on with those of a checkpoint if they fit.

    Norm statistics are those of a batch, so a training that goes on keeps the images of its batches, on another number
    of devices too. It comes before Checkpoints among the callbacks.

    Args:
        least: the fewest batches with which a step fits into the memory of this rank.
        batch_size: images of a step.
        synced: whether norm statistics are those of the batches of all devices together.
    """

    def __init__(self, least: int, batch_size: int, synced: bool = False) -> None:
        self.least, self.batch_size, self.synced = least, batch_size, synced

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            if dist.is_initialized():
                most = torch.tensor(self.least)  # on the CPU, where Checkpoints agrees, too
                dist.all_reduce(most, dist.ReduceOp.MAX)
                self.least = int(most)
            _take(trainer, self.least)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["processes"] = trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if "accumulate" not in checkpoint:  # of an older version
            return
        before, now = (1, 1) if self.synced else (checkpoint.get("processes", trainer.world_size), trainer.world_size)
        number, rest = divmod(checkpoint["accumulate"] * before, now)
        if rest == 0 and number > self.least and self.batch_size % (2 * number * trainer.world_size) == 0:
            log.info("trainer.accumulate=auto: %d, as in the checkpoint", number)
            _take(trainer, number)


def _take(trainer: Trainer, number: int) -> None:
    trainer.accumulate_grad_batches = number
    trainer.datamodule.accumulate = number  # type: ignore[attr-defined]
