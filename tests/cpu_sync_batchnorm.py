"""Norm statistics of all processes on CPUs, which PyTorch has for GPUs alone: two processes then train as one does.

As a script it is `python -m pipelines.train` with them.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from pipelines import train
from pipelines.runtime import build
from pipelines.runtime.cli import run

SYNCED_TRAIN = Path(__file__)


class CPUSyncNorms(LayerSync):
    """In place of `esformer.training.sync_batchnorm.SyncNorms`."""

    def __init__(self, on_gpus, processes):
        assert not on_gpus

    def apply(self, model):
        for module in model.modules():
            module.__class__ = SYNCED.get(type(module), type(module))
        return model

    def revert(self, model):
        return model


class RowsOfRanks(torch.autograd.Function):
    """The rows of all processes, one below the other: N -> processes, N."""

    @staticmethod
    def forward(ctx, row):
        rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, row.contiguous())
        return torch.stack(rows)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes: B, C, H, W -> B, C, H, W."""

    def forward(self, images):
        if not self.training or not dist.is_initialized():
            return super().forward(images)
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

    def forward(self, images):
        if not self.training or not dist.is_initialized():
            return super().forward(images)
        return self.act(self.drop(SyncedBatchNorm2d.forward(self, images)))


SYNCED = {nn.BatchNorm2d: SyncedBatchNorm2d, BatchNormAct2d: SyncedBatchNormAct2d}


if __name__ == "__main__":
    build.SyncNorms = CPUSyncNorms
    run(train.main)
