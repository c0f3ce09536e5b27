"""The exponential moving average of the weights, beside the raw ones from the first step to the last checkpoint."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from timm.utils import ModelEmaV3
from torch import Tensor

from esformer.data.datamodule import Batch
from esformer.training.metrics import accuracies
from esformer.training.module import broadcast_buffers


class EMA(Callback):
    """Keeps timm's averaged copy of `module.model`, evaluates it on the validation images too, and saves it.

    The copy is a network of its own: the weights in training are never exchanged for it, so no moment exists at which a
    checkpoint could confuse the two. It logs `val/ema_top1` and `val/ema_top5`; checkpoints hold it as
    `state_dict_ema`, where timm looks for it first.

    Args:
        decay: how much of the average each step keeps. In the first steps it keeps less, 1 - (1 + step)^-2/3, so that
            a short training has an average worth the name.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        self.decay = decay
        self.ema: ModelEmaV3 | None = None
        self._step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.ema is None:
            self.ema = ModelEmaV3(pl_module.model, decay=self.decay, use_warmup=True)
            self.accuracy = accuracies(pl_module.hparams["num_classes"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.ema is not None
        self.ema.to(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.ema is not None
        self._step = trainer.global_step
        network: Any = pl_module.model
        pairs = list(zip(self.ema.module.state_dict().values(), network.state_dict().values(), strict=True))
        self._averages, self._weights = _lists(pair for pair in pairs if pair[0].is_floating_point())
        self._copies, self._counts = _lists(pair for pair in pairs if not pair[0].is_floating_point())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step != self._step:  # not on every batch where gradients are accumulated
            self._step = trainer.global_step
            self.update(self._step)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average the weights after a step: timm's `update`, but that the tensors are listed once, not at each step."""
        assert self.ema is not None
        torch._foreach_lerp_(self._averages, self._weights, weight=1 - self.ema.get_decay(step))
        torch._foreach_copy_(self._copies, self._counts)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.ema is not None
        self.accuracy.to(pl_module.device).reset()
        broadcast_buffers(self.ema.module)

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        assert self.ema is not None
        with trainer.precision_plugin.val_step_context():
            self.accuracy.update(self.ema.module(batch.images).float(), batch.targets)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {f"val/ema_{name}": value for name, value in self.accuracy.compute().items()}  # of all ranks together
        pl_module.log_dict(values, sync_dist=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert self.ema is not None
        checkpoint["state_dict_ema"] = self.ema.module.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert self.ema is not None
        self.ema.module.load_state_dict(checkpoint["state_dict_ema"])


def _lists(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    first, second = zip(*pairs, strict=True)
    return list(first), list(second)
