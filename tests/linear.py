"""A real training that takes a tenth of a second: a linear classifier of digits, watched as a large one is."""

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

BATCH, TRAIN, STEPS = 64, 640, 10
"""Images of a step, images of an epoch, steps of an epoch."""


class Linear(LightningModule):
    """Logs under the names that ESFormerModule and its callbacks use. A batch follows from its number alone."""

    def __init__(self, images, targets):
        super().__init__()
        self.images, self.targets = images, targets
        self.net = torch.nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(2))

    def training_step(self, batch, batch_idx):
        here = slice(batch_idx * len(batch[0]), (batch_idx + 1) * len(batch[0]))
        loss = F.cross_entropy(self.net(self.images[here]), self.targets[here])
        self.log("train/loss", loss)
        self.seen += torch.stack([loss.detach(), torch.tensor(1.0)])
        return loss

    def on_validation_epoch_end(self):
        if self.trainer.state.fn == "fit":
            self.log("train/loss_epoch", self.seen[0] / self.seen[1])
            self.seen.zero_()

    def on_before_optimizer_step(self, optimizer):
        self.log("train/grad_norm", torch.nn.utils.get_total_norm([p.grad for p in self.parameters()]))

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        top1 = (logits.argmax(1) == batch[1]).float().mean()
        self.log_dict({"val/loss": F.cross_entropy(logits, batch[1]), "val/top1": top1, "val/ema_top1": top1 / 2})

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.1, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class At(Callback):
    """Does something after some step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.what(trainer)


def fit(callbacks, epochs=3, log_every=2, accumulate=1, loggers=(), ckpt_path=None, validate=False, **how):
    """Train, and give the trainer."""
    torch.manual_seed(0)
    data, targets = load_digits(return_X_y=True)
    data, targets = torch.tensor(data, dtype=torch.float32) / 16, torch.tensor(targets)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        log_every_n_steps=log_every,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **how,
    )
    size = BATCH // accumulate
    train = DataLoader(TensorDataset(data[:TRAIN], targets[:TRAIN]), size)
    val = DataLoader(TensorDataset(data[TRAIN:896], targets[TRAIN:896]), 128)
    module = Linear(data[:TRAIN], targets[:TRAIN])
    trainer.fit(module, train, val, ckpt_path=ckpt_path)
    if validate:
        trainer.validate(module, val, verbose=False)
    return trainer
