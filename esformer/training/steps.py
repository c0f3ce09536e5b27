"""What training steps gave: kept on the device, and read from there all at once."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Step:
    """One optimiser step.

    Args:
        number: how many were made before it.
        where: the epoch and the batch, both counted from 1.
        losses: of its batches, on this rank.
        places: of its batches: the Place of each image.
        norm: of the gradient; the same on all ranks.
    """

    number: int
    where: tuple[int, int]
    losses: list[Tensor]
    places: list[np.ndarray]
    norm: Tensor

    @property
    def finite(self) -> bool:
        """Whether the step was made; else it was skipped."""
        return bool(self.norm.isfinite())

    @property
    def suspects(self) -> np.ndarray:
        """The Places of the images of a batch whose loss is not finite; if there is none, of the last batch."""
        batches = zip(self.losses, self.places, strict=True)
        return next((places for loss, places in batches if not loss.isfinite()), self.places[-1])


@dataclass
class Steps:
    """Those that nobody has read yet. To read a number from a GPU is to wait for it, so all are read at once."""

    _steps: list[Step] = field(default_factory=list)
    _losses: list[Tensor] = field(default_factory=list)
    _places: list[np.ndarray] = field(default_factory=list)

    def add_batch(self, loss: Tensor, places: np.ndarray) -> None:
        self._losses.append(loss)
        self._places.append(places)

    def add_step(self, number: int, where: tuple[int, int], norm: Tensor) -> None:
        """The step of the batches since the one before."""
        self._steps.append(Step(number, where, self._losses, self._places, norm))
        self._losses, self._places = [], []

    def read(self) -> list[Step]:
        """The steps since the last time, their numbers on the CPU: one copy, one wait."""
        steps, self._steps = self._steps, []
        values = [value for step in steps for value in (*step.losses, step.norm)]
        known = iter(torch.stack([value.float() for value in values]).cpu().unbind() if values else ())
        for step in steps:
            step.losses = [next(known) for _ in step.losses]
            step.norm = next(known)
        return steps


class RunningLoss:
    """The mean loss of an epoch's images over all ranks, which a resumed epoch goes on with."""

    def __init__(self) -> None:
        self.values = torch.zeros(2, dtype=torch.float64)  # this rank's sum, and how many images it is of

    def update(self, loss: Tensor, images: int) -> None:
        """Take the mean loss of so many images, on the CPU, if it is finite."""
        if loss.isfinite():
            self.values += torch.stack([images * loss, torch.tensor(float(images))])

    def compute(self) -> Tensor:
        """The mean so far; a collective."""
        total, count = self._all_ranks().sum(0)
        return (total / count).float()

    def reset(self) -> None:
        """Begin another epoch."""
        self.values = torch.zeros_like(self.values)

    def state(self) -> list[list[float]]:
        """Sum and number of images of each rank; a collective."""
        return self._all_ranks().tolist()

    def load(self, state: list[list[float]]) -> None:
        """Go on from a state, on any number of ranks."""
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        values = torch.tensor(state, dtype=torch.float64)
        if len(state) == ranks:
            self.values = values[rank]
        else:
            self.values = values.sum(0) if rank == 0 else torch.zeros(2, dtype=torch.float64)

    def _all_ranks(self) -> Tensor:
        if not dist.is_initialized():
            return self.values[None]
        values = [torch.empty_like(self.values) for _ in range(dist.get_world_size())]
        dist.all_gather(values, self.values)
        return torch.stack(values)
