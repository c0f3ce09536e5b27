"""ESFormerModule: an ESFormer, or a network of another space, and a recipe such as Table 2 as a LightningModule."""

import logging
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from esformer.benchmarks.trained import AnyArchitecture, architecture_of
from esformer.checkpoint.versions import FORMAT
from esformer.data.datamodule import Batch, ImageDataModule
from esformer.errors import ESFormerError
from esformer.recipe import Recipe
from esformer.training.clipping import clip_grad_adaptive_
from esformer.training.drop_path import DeterministicDropPath
from esformer.training.losses import loss_of
from esformer.training.metrics import MeanLoss, accuracies
from esformer.training.network import build_network
from esformer.training.steps import RunningLoss, Step, Steps
from esformer.version import code_version

log = logging.getLogger("esformer")

LOOK = 50
"""Steps between two looks at what was skipped, where nothing is logged."""


class TrainingError(ESFormerError):
    """A training that cannot go on as it is; its checkpoints are good."""


class ESFormerModule(LightningModule):
    """Trains the network of an architecture by a recipe. All that it needs to be built again lies in its checkpoints.

    Args:
        genotype: the architecture, of any space, or its `to_dict`.
        recipe: Table 2, or its `to_dict`.
        num_classes: classes of the images.
        img_size: their height and width in pixels.
        provenance: whatever should travel with the weights, such as the search that found the genotype.
        max_skipped: steps in a row that may be skipped because their loss or gradient is not finite.
        seed: of stochastic depth.

    Raises:
        ESFormerError: the recipe, the images and the network do not fit each other.
        TrainingError: in training, when one more step than that is not finite; at the log point after it.
    """

    def __init__(
        self,
        genotype: AnyArchitecture | dict[str, Any],
        recipe: Recipe | dict[str, Any],
        num_classes: int = 1000,
        img_size: int = 224,
        provenance: dict[str, Any] | None = None,
        max_skipped: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        genotype = architecture_of(genotype) if isinstance(genotype, dict) else genotype
        recipe = recipe if isinstance(recipe, Recipe) else Recipe(**recipe)
        self.save_hyperparameters(  # plain containers, so that the checkpoint loads with weights_only
            dict(
                genotype=genotype.to_dict(),
                recipe=recipe.to_dict(),
                num_classes=num_classes,
                img_size=img_size,
                provenance=provenance or {},
                format=FORMAT,
                version=code_version(),
            )
        )
        self.reached: dict[str, float] = {}
        self.recipe = recipe
        network: Any = build_network(genotype, recipe, num_classes, img_size)
        self.model = network.to(memory_format=torch.channels_last)  # twice as fast, on the CPU too
        for part in self._frozen:
            part.requires_grad_(False)
        self.train()
        growing = recipe.epochs if recipe.drop_path_schedule == "epochs" else None
        self.paths = DeterministicDropPath(self.model, seed, growing)
        self.loss = loss_of(recipe)
        self.train_loss = RunningLoss()
        self.val_loss = MeanLoss()
        self.val_accuracy = accuracies(num_classes)
        self.max_skipped = max_skipped
        self.steps = Steps()
        self._skipped: list[str] = []  # the last steps in a row

    def forward(self, images: Tensor) -> Any:
        """B, 3, H, W -> B, num_classes; in training mode twice, if there is an auxiliary classifier"""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which frozen stages keep their norm statistics and drop no paths; or evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    @property
    def _frozen(self) -> list[nn.Module]:
        """The parts of the network that the recipe does not train."""
        return [self.model.stem, *self.model.stages[: self.recipe.freeze]] if self.recipe.freeze else []

    def on_train_start(self) -> None:
        self._statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        self._good = torch.cat([buffer.flatten() for buffer in self._statistics])
        parts = self._good.split([buffer.numel() for buffer in self._statistics])
        self._good_parts = [part.view_as(buffer) for part, buffer in zip(parts, self._statistics, strict=True)]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.paths.draw(batch.places, batch.images.device)
        loss = self._loss(self(batch.images), batch.targets)
        self.steps.add_batch(loss.detach(), batch.places)
        return loss

    def _loss(self, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self.loss(outputs, targets)
        logits, auxiliary = outputs
        return self.loss(logits, targets) + self.recipe.auxiliary * self.loss(auxiliary, targets)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Makes the step; at Lightning's log points it logs its loss and gradient norm, and looks at those before."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        trainer: Any = self.trainer
        due = (trainer.global_step + 1) % (trainer.log_every_n_steps or LOOK) == 0
        if due and (last := self.look()) is not None:
            self.log_dict({"train/loss": last.losses[-1], "train/grad_norm": last.norm}, on_step=True, on_epoch=False)

    def on_validation_epoch_start(self) -> None:
        broadcast_buffers(self.model)
        if self.trainer.state.fn == "fit":
            self.look()
            loss = self.train_loss.compute()  # here, for callbacks to find it after the epoch
            self.log("train/loss_epoch", loss.to(self.device), sync_dist=True)

    def on_train_epoch_end(self) -> None:
        self.look()
        self.train_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch.images).float()
        self.val_loss.update(logits, batch.targets)
        self.val_accuracy.update(logits, batch.targets)
        self.log("val/loss", self.val_loss, on_epoch=True)
        self.log_dict({f"val/{name}": metric for name, metric in self.val_accuracy.items()}, on_epoch=True)

    def configure_optimizers(self) -> Any:
        # with float16 Lightning unscales the gradients of other kinds only; None leaves the kind to PyTorch
        fused = True if self.trainer.precision != "16-mixed" else None
        optimizer = optimizer_of(self.model, self.recipe, fused)
        schedule = LambdaLR(optimizer, lambda step: lr_factor(step, self._steps, self.recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @cached_property
    def _steps(self) -> int:
        """How many there are in the whole training.

        Not Lightning's estimate, where it can be had otherwise: that makes the loaders, which must not be made before
        Lightning knows where a resumed training stands.
        """
        per_epoch = getattr(self._data, "steps_per_epoch", None)
        return per_epoch * self.recipe.epochs if per_epoch else int(self.trainer.estimated_stepping_batches)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """The recipe's clipping; as in timm, adaptive clipping leaves the classifier out.

        A step whose gradient is not finite is skipped: it changes neither weights nor moments nor step counts, and the
        norm statistics are those from before. All ranks have the same gradients, so they decide alike. The device
        decides, for to look would be to wait for it; `look` tells what was skipped.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.recipe.clip_grad > 0 and self.recipe.clip_mode == "norm":
            nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip_grad, norm)
        elif self.recipe.clip_grad > 0 and self.recipe.clip_mode == "agc":
            head = set(self.model.get_classifier().parameters())
            clip_grad_adaptive_([p for p in parameters if p not in head], self.recipe.clip_grad)
        elif self.recipe.clip_grad > 0:
            nn.utils.clip_grad_value_(parameters, self.recipe.clip_grad)
        bad = norm.isfinite().logical_not_()
        if optimizer.defaults["fused"]:
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # it skips the step by itself
        elif bad:  # with float16, which waits for the device at each step to scale the loss
            self.model.zero_grad(set_to_none=True)
        if self._statistics:
            now = torch.cat([buffer.flatten() for buffer in self._statistics])
            torch.where(bad, self._good, now, out=self._good)
            torch._foreach_copy_(self._statistics, self._good_parts)
        trainer = self.trainer
        where = trainer.current_epoch + 1, trainer.fit_loop.epoch_loop.batch_idx + 1
        self.steps.add_step(trainer.global_step, where, norm)

    @property
    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    def look(self) -> Step | None:
        """Read the steps since the last time, which waits for the device, and give the last of them.

        Raises:
            TrainingError: too many in a row were skipped.
        """
        step = None
        for step in self.steps.read():
            for loss, places in zip(step.losses, step.places, strict=True):
                self.train_loss.update(loss, len(places))
            if step.norm.isfinite():
                self._skipped.clear()
            else:
                self._skip(step)
        return step

    def _skip(self, step: Step) -> None:
        epoch, batch = step.where
        message = f"the gradient is not finite at step {step.number} (epoch {epoch}, batch {batch})"
        if isinstance(self._data, ImageDataModule):
            places = step.suspects
            first = ", ".join(map(self._data.name_of, places[:3]))
            message += f", whose images on this rank are {first} and {len(places) - 3} more"
        self._skipped.append(message)
        if len(self._skipped) > self.max_skipped:
            before = f"; nor was it in the {self.max_skipped} steps before, which were skipped. First of all "
            raise TrainingError(message + (before + self._skipped[0] if self.max_skipped else ""))
        ours = not all(loss.isfinite() for loss in step.losses)  # rank 0 speaks always, the others if it was they
        log.log(logging.ERROR if ours else logging.WARNING, "%s; the step is skipped", message)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.look()
        checkpoint["train_loss"] = self.train_loss.state()
        logged = self.trainer.callback_metrics.items()
        self.reached |= {name: float(value) for name, value in logged if name.startswith("val/")}
        checkpoint["metrics"] = self.reached
        checkpoint["data"] = self._data.describe() if isinstance(self._data, ImageDataModule) else {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "train_loss" in checkpoint:  # not in those of older versions
            self.train_loss.load(checkpoint["train_loss"])
        self.reached = dict(checkpoint.get("metrics", {}))
        self.hparams["provenance"] = checkpoint["hyper_parameters"]["provenance"]  # what it once started from


def optimizer_of(network: nn.Module, recipe: Recipe, fused: bool | None = None) -> Optimizer:
    """AdamW by the recipe, in timm's groups of parameters; or SGD, in one.

    Args:
        network: what is trained.
        recipe: Table 2, or another.
        fused: one kernel for all parameters; None uses it where the device has it.
    """
    if recipe.optimizer == "sgd":
        return _sgd([p for p in network.parameters() if p.requires_grad], recipe, fused)
    layers = dict(layer_decay=recipe.layer_decay) if recipe.layer_decay < 1 else {}
    optimizer = create_optimizer_v2(network, "adamw", recipe.lr, recipe.weight_decay, fused=fused, **layers)
    for group in optimizer.param_groups:  # a scale of its own is something that only timm's schedules look at
        group["lr"] *= group.pop("lr_scale", 1.0)
    return optimizer


def _sgd(parameters: list[nn.Parameter], recipe: Recipe, fused: bool | None) -> Optimizer:
    """With moments of 0, as which PyTorch's begin: a first step that is skipped would leave them unwritten."""
    r = recipe
    optimizer = SGD(parameters, r.lr, momentum=r.momentum, weight_decay=r.weight_decay, fused=fused)
    if r.momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def broadcast_buffers(network: nn.Module) -> None:
    """Give every rank the norm statistics of rank 0, which are those that a checkpoint gets."""
    if not dist.is_initialized():
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for buffer in network.buffers():
        kinds.setdefault(buffer.dtype, []).append(buffer)
    for buffers in kinds.values():  # all together, for each message costs the same however short it is
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, 0)
        parts = flat.split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])


def lr_factor(step: int, steps: int, recipe: Recipe) -> float:
    """The share of `lr` at a step: a linear warm-up, then a cosine to `min_lr` at the last step, or less each epoch.

    Args:
        step: counted from 0.
        steps: of the whole training.
        recipe: Table 2.
    """
    warmup = round(steps * recipe.warmup_epochs / recipe.epochs)
    if step < warmup:
        start = recipe.warmup_lr / recipe.lr
        return start + (1 - start) * step / warmup
    end = min(recipe.min_lr / recipe.lr, 1.0)
    if recipe.schedule == "exponential":
        return max(end, recipe.lr_decay ** (step * recipe.epochs // steps))
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2
