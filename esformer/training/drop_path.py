"""Stochastic depth that is the same for any number of devices."""

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn


class DeterministicDropPath:
    """Decides which images of a batch skip which paths of a network, from the seed, the epoch and the place alone.

    timm's DropPath draws from the state of a device, so another number of devices would be another training. Here the
    draws are looked up by an image's position in the epoch, in a random generator made for that (Philox); and a path
    that is computed again in the backward pass finds the same ones.

    Args:
        network: its DropPath modules ask here from now on.
        seed: of the draws.
        epochs: in so many the rates grow from 0, by the same with each epoch; None has them whole from the beginning.
    """

    def __init__(self, network: nn.Module, seed: int, epochs: int | None = None) -> None:
        self.seed, self.epochs = seed, epochs
        self.paths: list[PlacedDropPath] = []
        for module in network.modules():
            if type(module) is DropPath and module.drop_prob:
                module.__class__ = PlacedDropPath
                self.paths.append(module)  # type: ignore[arg-type]

    def draw(self, places: np.ndarray, device: torch.device) -> None:
        """Decide for a training batch.

        Args:
            places: B, 3: the Place of each image; all of one epoch, at positions in a row, in any order.
            device: of the batch.
        """
        if not self.paths:
            return
        epoch, first = int(places[0, 0]), int(places[:, 1].min())
        width = -(-len(self.paths) // 4)  # Philox makes four numbers for each value of its counter
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=first * width))
        draws = rng.random((len(places), 4 * width), dtype=np.float64)[places[:, 1] - first]
        share = 1.0 if self.epochs is None else min(1.0, epoch / self.epochs)
        keep = 1 - share * np.array([path.drop_prob for path in self.paths])
        scales = (draws[:, : len(keep)] < keep) / keep  # B, paths
        host = torch.empty(len(keep), len(places), 1, 1, 1, pin_memory=device.type == "cuda")  # else the copy waits
        host.view(scales.T.shape).copy_(torch.from_numpy(scales.T))
        for path, scale in zip(self.paths, host.to(device, non_blocking=True).unbind(), strict=True):
            path.scale = scale


class PlacedDropPath(DropPath):
    """timm's DropPath, told which images to drop."""

    scale: Tensor
    """B, 1, 1, 1: what the path counts for each image, 0 where it is dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """B, C, H, W -> B, C, H, W"""
        return x * self.scale.to(x.dtype) if self.training else x
