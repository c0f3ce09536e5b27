"""The plan of a run: all that is decided before it starts; `pipelines.runtime.preflight` makes it."""

from dataclasses import dataclass
from functools import cached_property

import torch

from configs.schema import Config
from esformer.data.datamodule import ImageDataModule
from esformer.search.stage import SearchStage
from pipelines.runtime import memory
from pipelines.runtime.processes import Processes
from pipelines.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Plan:
    """What a run is. Nobody who has it asks the environment or the command line again.

    Args:
        pipeline: the command's name: full, search, train, survey, ablate or evaluate.
        config: every setting; where images are needed, they are found, their classes counted and their loaders settled.
        processes: those of the run.
        run: its folder, not yet claimed.
        stage: the search, checked and not yet run; None where nothing is searched.
        images: checked; None where nothing is trained.
        device: on which this process trains; None where nothing is trained.
        gpus: of this machine, as CUDA_VISIBLE_DEVICES names them, for trainings in processes of their own.
    """

    pipeline: str
    config: Config
    processes: Processes
    run: RunFolder
    stage: SearchStage | None = None
    images: ImageDataModule | None = None
    device: torch.device | None = None
    gpus: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether networks are trained: a search does so if it has finalists."""
        return self.images is not None

    @cached_property
    def precision(self) -> str:
        """Lightning's name of the arithmetic, which only training and evaluation ask for: it may start CUDA."""
        return memory.precision(self.config.trainer)
