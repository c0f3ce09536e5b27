"""Checkpoints that a kill at any moment leaves whole, from which a training goes on as if nothing had happened."""

import io
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from esformer.checkpoint import CheckpointError, read
from esformer.errors import STOPPED
from esformer.files import write_bytes

log = logging.getLogger("esformer")

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
GO_ON, SAVE, STOP = 0, 1, 2


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is on the disk; keeps the last but one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(exist_ok=True)  # in the run's folder, which is not made anew if somebody moved it away
        for left in path.parent.glob(f".{path.name}.*"):  # by a kill in the middle of a writing; they are large
            left.unlink(missing_ok=True)
        content = io.BytesIO()  # a write that fails within torch.save does not say why
        torch.save(checkpoint, content)
        previous = path.with_name(PREVIOUS) if path.name == LAST else None
        write_bytes(path, content.getbuffer(), durable=True, previous=previous)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """On the CPU, in the present format, and only if it is what was written."""
        return read(path)


class Checkpoints(Checkpoint):
    """Saves `last.ckpt` after every epoch, every few minutes within one, and when the training is asked to stop.

    The one before is kept as `previous.ckpt`, and that with the best validation accuracy as `best.ckpt`. When some rank
    was asked to stop, all of them agree on it at their next batch, in training or in validation; then they save and
    raise SystemExit(STOPPED). A checkpoint from within a validation goes on with the whole of it.

    Checkpoints are written before a batch, when everything is in a state that Lightning can go on from: in the middle
    of a step or of its hooks it cannot.

    Args:
        folder: where they go.
        monitor: the metric of which more is better.
        minutes: between two checkpoints within an epoch.
        asked: whether somebody wants this process to stop.
        agreed: called when all ranks have agreed to stop.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        minutes: float,
        asked: Callable[[], bool] = lambda: False,
        agreed: Callable[[], None] = lambda: None,
    ) -> None:
        self.last, self.best = folder / LAST, folder / BEST
        self.monitor, self.minutes, self.asked, self.agreed = monitor, minutes, asked, agreed
        self.best_score = float("-inf")
        self._saved_at = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        least, most = -_highest(-trainer.global_step), _highest(trainer.global_step)
        if least != most:
            raise CheckpointError(
                f"processes went on from different checkpoints, of steps {least} and {most}: do all nodes see the same"
                f" {self.last.parent}?"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        todo = self._agree(trainer)
        if todo != GO_ON and batch_idx > 0:  # before the first, the last epoch's checkpoint is as good
            self._save(trainer)
        if todo == STOP:
            self._stop(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn == "fit" and self._agree(trainer) == STOP:
            self._save(trainer)
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = float(trainer.callback_metrics[self.monitor])
        better = score > self.best_score
        self.best_score = max(score, self.best_score)
        if better:  # first, for the last one says that the best one is there
            trainer.save_checkpoint(self.best)
        self._save(trainer)
        if self._agree(trainer) == STOP:
            self._stop(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["accumulate"] = trainer.accumulate_grad_batches
        if trainer.validating:
            loop = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for progress in loop["total"], loop["current"]:  # its first batch has begun: what Lightning begins again
                progress.update(ready=1, started=1, processed=0, completed=0)
        elif trainer.training:
            loop = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for progress in loop["total"], loop["current"]:  # the batch that is ready has not begun
                progress["ready"] = progress["completed"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Steps stay what they are if another number of batches makes a step than before."""
        now = trainer.accumulate_grad_batches
        before = checkpoint.get("accumulate", now)  # those of older versions do not say
        if before != now:
            loop = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for progress in loop["total"], loop["current"]:
                progress.update({name: count // before * now for name, count in progress.items()})

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.last)
        self._saved_at = time.monotonic()

    def _stop(self, trainer: Trainer) -> None:
        log.info("asked to stop in epoch %d, step %d", trainer.current_epoch + 1, trainer.global_step)
        raise SystemExit(STOPPED)

    def _agree(self, trainer: Trainer) -> int:
        """What all ranks do now. Ranks that decided for themselves would wait for each other for ever."""
        due = time.monotonic() - self._saved_at > self.minutes * 60
        mine = STOP if self.asked() else SAVE if due else GO_ON
        todo = _highest(mine)
        if todo == STOP:
            self.agreed()
        return todo


def _highest(number: int) -> int:
    """The highest number of all ranks; found on the CPU, for a GPU would have to finish all that it has to do first."""
    if not dist.is_initialized():
        return number
    highest = torch.tensor(number)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)
