"""Norm statistics of all devices together."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from timm.layers import convert_sync_batchnorm
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn


class SyncNorms(LayerSync):
    """timm's switch to PyTorch's SyncBatchNorm; on CPUs, which that refuses, to one of our own.

    PyTorch's own switch, which Lightning uses, loses the activations that timm keeps in its norms.

    Args:
        on_gpus: where the network will train. Lightning switches while it is still on the CPU.
    """

    def __init__(self, on_gpus: bool) -> None:
        self.on_gpus = on_gpus

    def apply(self, model: nn.Module) -> nn.Module:
        if self.on_gpus:
            return convert_sync_batchnorm(model)
        for module in model.modules():
            module.__class__ = SYNCED.get(type(module), type(module))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # they evaluate as ordinary ones do


class RowsOfRanks(torch.autograd.Function):
    """The rows of all processes, one below the other: N -> processes, N."""

    @staticmethod
    def forward(ctx: Any, row: Tensor) -> Tensor:
        rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, row.contiguous())
        return torch.stack(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes: B, C, H, W -> B, C, H, W."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(images)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        kind, images = images.dtype, images.float()
        count = images.numel() // self.num_features * dist.get_world_size()
        variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
        variances, means = RowsOfRanks.apply(torch.cat([variance, mean])).chunk(2, dim=1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)  # all ranks have as many images
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (images * scale[:, None, None] + shift[:, None, None]).to(kind)


class SyncedBatchNormAct2d(BatchNormAct2d):
    """The same for timm's batch norm with an activation."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(images)
        return self.act(self.drop(SyncedBatchNorm2d.forward(self, images)))


SYNCED = {nn.BatchNorm2d: SyncedBatchNorm2d, BatchNormAct2d: SyncedBatchNormAct2d}
