"""What a training starts from: a genotype, and perhaps a checkpoint whose weights it takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from configs.schema import Config, ConfigError
from esformer.checkpoint import Checkpoint, CheckpointError
from esformer.checkpoint.loading import find, fitted
from esformer.genotype import Genotype, shipped_names
from esformer.model.esformer import ESFormer
from pipelines.runtime.run_folder import RunFolder


def given_genotype(config: Config) -> Genotype:
    """The genotype that the configuration names: a file, a shipped one, or the shipped one of its size."""
    name = config.genotype or f"esformer_{config.size.lower()}"
    return Genotype.shipped(name) if name in shipped_names() and not Path(name).exists() else Genotype.load(name)


def load_initial_checkpoint(config: Config, argv: Sequence[str] | None = None) -> tuple[Genotype, Checkpoint | None]:
    """What a run trains, and the checkpoint that it starts from, if the configuration names one.

    A run that has checkpoints of its own goes on from them, whatever became of the one that it started from.

    Raises:
        ESFormerError: the checkpoint cannot be opened, or is of another genotype or size than is asked for.
    """
    if config.init is None:
        return given_genotype(config), None
    try:
        start = find(config.init)
    except CheckpointError:
        run = RunFolder.of("train", config, argv)
        if not (run.last.exists() or run.previous.exists()):
            raise
        return Genotype.load(run.genotype), None
    size = start.genotype.space.partition("-")[0]
    if size != config.size:
        raise ConfigError(f"size is {config.size}, but {start.path} holds an {size}; leave the size out")
    if config.genotype is not None and given_genotype(config) != start.genotype:
        raise ConfigError(f"genotype={config.genotype} is not that of {start.path}; leave it out")
    _check_start(start, config.data.img_size)
    return start.genotype, start


def descent(start: Checkpoint | None) -> dict[str, Any]:
    """What a network should know of the checkpoint that its training started from, if from one."""
    if start is None:
        return {}
    known = start.describe()
    told = {key: known[key] for key in ("weights", "version", "metrics", "provenance")}
    return {"from": {"path": str(start.path), **told}}


def _check_start(start: Checkpoint, img_size: int) -> None:
    """Refuse weights that are not all there, before any work."""
    with torch.device("meta"):
        network = ESFormer(start.genotype, img_size=img_size)
    fitted(start, network)
