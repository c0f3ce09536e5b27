"""Norm statistics of all devices together."""

from lightning.pytorch.plugins import LayerSync
from timm.layers import convert_sync_batchnorm
from torch import nn

from esformer.errors import ESFormerError


class SyncNorms(LayerSync):
    """timm's switch to PyTorch's SyncBatchNorm, which knows GPUs alone; one process on a CPU needs none.

    PyTorch's own switch, which Lightning uses, loses the activations that timm keeps in its norms.

    Args:
        on_gpus: where the network will train. Lightning switches while it is still on the CPU.
        processes: how many train together.

    Raises:
        ESFormerError: they are several, on CPUs.
    """

    def __init__(self, on_gpus: bool, processes: int) -> None:
        if not on_gpus and processes > 1:
            raise ESFormerError(
                f"norm statistics of {processes} processes together need GPUs, for PyTorch's SyncBatchNorm knows no"
                " CPUs; leave trainer.sync_batchnorm out"
            )
        self.on_gpus = on_gpus

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model) if self.on_gpus else model

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # they evaluate as ordinary ones do
