"""What a training starts from: a genotype, and perhaps a checkpoint whose weights it takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from configs.schema import Config, ConfigError
from esformer.benchmarks.trained import AnyArchitecture, read_architecture
from esformer.checkpoint import Checkpoint, CheckpointError
from esformer.checkpoint.loading import find, fitted
from esformer.genotype import Genotype, shipped_names
from esformer.model.esformer import ESFormer
from esformer.training.network import build_network
from pipelines.runtime.run_folder import RunFolder


def given_genotype(config: Config) -> AnyArchitecture:
    """What the configuration names: a file, of any space; a shipped genotype, or that of its size."""
    name = config.genotype or f"esformer_{config.size.lower()}"
    return Genotype.shipped(name) if name in shipped_names() and not Path(name).exists() else read_architecture(name)


def load_initial_checkpoint(
    config: Config, argv: Sequence[str] | None = None
) -> tuple[AnyArchitecture, Checkpoint | None]:
    """What a run trains, and the checkpoint that it starts from, if the configuration names one.

    A run that has checkpoints of its own goes on from them, whatever became of the one that it started from.

    Raises:
        ESFormerError: the checkpoint cannot be opened, or is of another genotype or size than is asked for; or the
            network cannot be trained as the settings say.
    """
    if config.init is None:
        genotype = given_genotype(config)
        _check_trainable(config, genotype)
        return genotype, None
    try:
        start = find(config.init)
    except CheckpointError:
        run = RunFolder.of("train", config, argv)
        if not (run.last.exists() or run.previous.exists()):
            raise
        return Genotype.load(run.genotype), None
    if not isinstance(start.genotype, Genotype):
        raise ConfigError(
            f"{start.path} holds a network of space {start.genotype.space}; a training starts from ESFormers alone"
        )
    size = start.genotype.space.partition("-")[0]
    if size != config.size:
        raise ConfigError(f"size is {config.size}, but {start.path} holds an {size}; leave the size out")
    if config.genotype is not None and given_genotype(config) != start.genotype:
        raise ConfigError(f"genotype={config.genotype} is not that of {start.path}; leave it out")
    _check_start(start, start.genotype, config.data.img_size)
    _check_trainable(config, start.genotype)
    return start.genotype, start


def descent(start: Checkpoint | None) -> dict[str, Any]:
    """What a network should know of the checkpoint that its training started from, if from one."""
    if start is None:
        return {}
    known = start.describe()
    told = {key: known[key] for key in ("weights", "version", "metrics", "provenance")}
    return {"from": {"path": str(start.path), **told}}


def _check_start(start: Checkpoint, genotype: Genotype, img_size: int) -> None:
    """Refuse weights that are not all there, before any work."""
    with torch.device("meta"):
        network = ESFormer(genotype, img_size=img_size)
    fitted(start, network)


def _check_trainable(config: Config, genotype: AnyArchitecture) -> None:
    """Refuse settings that ask of a network what it cannot do, before any work."""
    if config.trainer.grad_checkpointing and not isinstance(genotype, Genotype):
        raise ConfigError(
            f"trainer.grad_checkpointing=true is for ESFormers; leave it out for a network of space {genotype.space}"
        )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        build_network(genotype, config.recipe, config.data.known_classes, config.data.img_size)
