"""Memory: in which arithmetic a training computes, and of how many batches its step is accumulated, so that one fits.

A step is tried on the device before the run's time is spent.
"""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from callbacks.ema import EMA
from configs.compose import to_yaml
from configs.schema import Config, ConfigError, TrainerConfig
from esformer.benchmarks.trained import AnyArchitecture
from esformer.data.datamodule import device_batch_size
from esformer.data.in_memory import InMemoryDataModule
from esformer.errors import ESFormerError, out_of_memory
from esformer.genotype import Genotype
from esformer.training.module import ESFormerModule

log = logging.getLogger("esformer")

TRAINED = ("32-true", "bf16-mixed", "16-mixed")
"""Arithmetic with weights of 32 bits."""
UNFOUND = 1.25
"""Before a search the network is not known. It is tried with the shipped one of its size, which such a search found (so
it has more activations than nearly all others), and with so many times the images."""
SPARE = 0.05
"""Share of a GPU's memory that must stay free in the trial: for fragments, and for workspaces that cuDNN chooses."""
PEAK = 1.2
"""On the CPU: the memory of a step, divided by that of the activations which its forward pass keeps."""
BASE = 2**30
"""On the CPU: bytes of PyTorch, images that lie ready, and the rest of a process."""
COPIES = 8
"""Of the network: weights, gradients, two moments, average, and what is being copied of them."""
EPOCH = 1_281_167
"""Made-up images of the trial: any number that is enough for a step."""

_found: dict[tuple[str, str, str, float], int] = {}


class NoMemoryError(ESFormerError):
    """A step that the memory of the device does not hold; says which would fit."""


def on_gpus(trainer: TrainerConfig) -> bool:
    """Whether a training runs on GPUs."""
    return trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def precision(trainer: TrainerConfig) -> str:
    """Lightning's name of the arithmetic: what the configuration says, or the best of the device."""
    if trainer.precision != "auto":
        return trainer.precision
    return "bf16-mixed" if on_gpus(trainer) and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def check_precision(trainer: TrainerConfig, device: torch.device, training: bool = True) -> None:
    """Refuse arithmetic that the device does not have, or in which nothing is learnt.

    Raises:
        ConfigError: it says which to take.
    """
    name = precision(trainer)
    if name == "16-mixed" and device.type == "cpu":
        raise ConfigError("trainer.precision=16-mixed needs a GPU; take bf16-mixed or 32-true on the CPU")
    if training and name not in TRAINED:
        raise ConfigError(
            f"trainer.precision={name} is for evaluation only: weights of 16 bits lose the small changes of a step and"
            f" of their average, and 64 bits gain nothing; training takes {', '.join(TRAINED)} or auto"
        )


def accumulation(
    config: Config, genotype: AnyArchitecture, device: torch.device, world: int, local: int, margin: float
) -> int:
    """Batches that a step is accumulated from: those of the configuration, or for `auto` the fewest that fit.

    Random states, and so the results of what follows, stay as they were.

    Args:
        config: the run's configuration; its data are resolved.
        genotype: what is trained.
        device: on which this process trains.
        world: processes in all.
        local: processes on this machine, which share its memory.
        margin: so many times the images of the step are tried.

    Raises:
        NoMemoryError: the number of the configuration does not fit (it says which does), or none does.
        DataError: the batch does not divide.
    """
    key = (genotype.digest, to_yaml(config), f"{device} {world} {local}", margin)
    if key not in _found:
        with isolate_rng():
            _found[key] = _find(Trial(config, genotype, device, world, local, margin))
    return _found[key]


def _find(trial: "Trial") -> int:
    asked, batch_size = trial.config.trainer.accumulate, trial.config.recipe.batch_size
    if isinstance(asked, int):
        images = device_batch_size(batch_size, trial.world, asked)
        if not trial.fits(images):
            more = trial.smallest(asked + 1)
            raise NoMemoryError(f"trainer.accumulate={asked}: {trial.refusal(images)}; {trial.remedy(images, more)}")
        return asked
    device_batch_size(batch_size, trial.world, 1)
    number = trial.smallest(1)
    if number is None:
        raise NoMemoryError(f"{trial.refusal(2)}; {trial.remedy(2, None)}")
    if number > 1:
        each = batch_size // trial.world // number
        log.info("trainer.accumulate=auto: %d batches of %d images a step, the largest that fit", number, each)
    return number


@dataclass(frozen=True)
class Trial:
    """A step of a training, tried on its device; on the CPU, where it takes minutes, computed from two images."""

    config: Config
    genotype: AnyArchitecture
    device: torch.device
    world: int
    local: int
    margin: float = 1.0

    def fits(self, images: int) -> bool:
        """Whether the memory of the device holds a step of so many images at a time."""
        images = 2 * round(images * self.margin / 2)
        if self.device.type == "cpu":
            return self.needed(images) <= self.there
        parts = 1 if images >= self.config.recipe.batch_size // self.world else 2
        kept = sum(p.numel() for p in self._module().parameters()) * 4 if self.world > 1 else 0  # the buckets of DDP
        try:
            take_steps(self.config, self._module(), self.device, images, parts, int(SPARE * self.total) + kept)
        except (RuntimeError, MemoryError) as error:  # cuBLAS and cuDNN have words of their own
            if not out_of_memory(error):
                raise
            return False
        finally:
            free(self.device)
        return True

    def smallest(self, least: int) -> int | None:
        """The smallest number of accumulated batches that fits, from the given one on."""
        batch, parts = self.config.recipe.batch_size, 2 * self.world
        numbers = (n for n in range(least, batch // parts + 1) if batch % (parts * n) == 0)
        return next((n for n in numbers if self.fits(batch // self.world // n)), None)

    def refusal(self, images: int) -> str:
        """What does not fit, in words."""
        what = f"{images} images at a time in {precision(self.config.trainer)}"
        if self.device.type == "cpu":
            return (
                f"{what} take about {gib(self.needed(images))} of memory, and there are {gib(self.there)}"
                " for this process"
            )
        room = torch.cuda.mem_get_info(self.device)[0]
        return f"{what} do not fit into the {gib(self.total)} of {self.device}, of which {gib(room)} are free"

    def remedy(self, images: int, number: int | None) -> str:
        """What fits: a number of batches, and settings with which so many images do."""
        ways = [] if number is None else [f"trainer.accumulate={number} (the same training)"]
        for setting, trainer in self._savings():
            if replace(self, config=replace(self.config, trainer=trainer)).fits(images):
                ways.append(setting)
        return f"{' or '.join(ways)} would fit" if ways else "this network needs a device with more memory"

    def needed(self, images: int) -> float:
        """Bytes of a step of so many images, computed."""
        parameters, each = self._measured
        return BASE + COPIES * parameters + PEAK * each * images

    @cached_property
    def _measured(self) -> tuple[float, float]:
        c = self.config
        return activations(self._module(drop_path=0.0).model, precision(c.trainer), c.data.img_size)

    @property
    def there(self) -> float:
        """Bytes of the CPU's memory for this process."""
        return available_memory() / self.local

    @property
    def total(self) -> int:
        """Bytes of the GPU's memory."""
        return torch.cuda.get_device_properties(self.device).total_memory

    def _savings(self) -> Iterator[tuple[str, TrainerConfig]]:
        """Settings that take less memory."""
        t = self.config.trainer
        best = precision(replace(t, precision="auto"))
        if precision(t) != best and best == "bf16-mixed":
            yield f"trainer.precision={best}", replace(t, precision=best)
        if not t.grad_checkpointing and not t.compile and isinstance(self.genotype, Genotype):
            yield "trainer.grad_checkpointing=true", replace(t, grad_checkpointing=True)

    def _module(self, **recipe: Any) -> ESFormerModule:
        c = self.config
        assert c.data.num_classes is not None
        module = ESFormerModule(self.genotype, replace(c.recipe, **recipe), c.data.num_classes, c.data.img_size)
        if c.trainer.grad_checkpointing:
            module.model.set_grad_checkpointing()
        return module


def ran_out(batch_size: int, world: int, accumulate: int) -> NoMemoryError:
    """What to say of a training that met the end of the memory all the same."""
    images = batch_size // world // accumulate
    more = (n for n in range(accumulate + 1, batch_size // world // 2 + 1) if batch_size % (2 * world * n) == 0)
    number = next(more, None)
    way = "a device with more memory" if number is None else f"trainer.accumulate={number}, the same training,"
    return NoMemoryError(f"the memory of the device did not hold a step of {images} images at a time; go on with {way}")


def take_steps(
    config: Config, module: ESFormerModule, device: torch.device, images: int, parts: int, spare: int = 0
) -> None:
    """Two optimiser steps of a training on made-up images, as Lightning takes them: in the second one everything is
    there that a training keeps.

    Without torch.compile, which saves memory and takes minutes; and without cuDNN's search for the fastest kernels,
    which finds what fits.

    Args:
        config: the run's configuration.
        module: what is trained.
        device: where.
        images: at a time.
        parts: batches that are accumulated.
        spare: bytes of the device that must stay free.
    """
    held = torch.empty(spare, dtype=torch.uint8, device=device)
    recipe = replace(config.recipe, batch_size=images * parts)
    made_up = replace(config.data, name="synthetic", root=None, limit=None, workers=0)
    made_up = replace(made_up, train_images=max(EPOCH, images * parts), val_images=1)
    trainer = Trainer(
        accelerator=device.type,
        devices=1 if device.index is None or device.type == "cpu" else [device.index],
        plugins=[LightningEnvironment()],  # of several processes, too, each tries alone
        precision=precision(config.trainer),  # type: ignore[arg-type]
        accumulate_grad_batches=parts,
        max_steps=2,
        callbacks=[EMA(recipe.ema_decay)] if recipe.ema else [],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    try:
        trainer.fit(module, InMemoryDataModule(made_up, recipe, config.seed, parts))
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        del held


def activations(network: Any, precision: str, img_size: int) -> tuple[float, float]:
    """Bytes of a network's parameters, and of what its backward pass needs of each image.

    Where blocks compute their activations anew, those of the largest and their gradients come to what is kept.

    Args:
        network: in training mode; it skips no paths.
        precision: Lightning's name of the arithmetic.
        img_size: height and width in pixels.
    """
    parameters = sum(p.numel() * p.element_size() for p in network.parameters())
    kept = _kept(network, precision, img_size)[0]
    if getattr(network, "grad_checkpointing", False):
        network.set_grad_checkpointing(False)
        kept += 2 * _kept(network, precision, img_size)[1]
    return parameters, kept


def _kept(network: Any, precision: str, img_size: int) -> tuple[float, float]:
    """Bytes that a forward pass keeps of each image, in all and in the largest block; measured on two images."""
    known = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    storages: list[torch.UntypedStorage] = []  # held, so that an address stays what it is
    blocks: dict[nn.Module, list[int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            storages.append(storage)
        return tensor

    def mark(block: nn.Module, *_: Any) -> None:
        blocks.setdefault(block, []).append(len(storages))

    hooks: list[Any] = []
    stages: Any = getattr(network, "stages", ())  # of ESFormers, whose blocks can be computed anew
    for block in (block for stage in stages for block in stage.blocks):
        hooks += [block.register_forward_pre_hook(mark), block.register_forward_hook(mark)]
    images = torch.rand(2, 3, img_size, img_size).contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision.endswith("mixed")),
    ):
        network(images)
    for hook in hooks:
        hook.remove()
    sizes = [storage.nbytes() / len(images) for storage in storages]
    return sum(sizes), max((sum(sizes[first:last]) for first, last in blocks.values()), default=0.0)


def free(device: torch.device) -> None:
    """Give back what a trial or a search left in a GPU's memory, and begin to count anew."""
    gc.collect()
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def available_memory() -> int:
    """Bytes of memory that may still be taken here: those that are free, and what a container is allowed."""
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return min(int(lines["MemAvailable"].split()[0]) * 1024, *_cgroup_rooms())
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_rooms(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What the limits of this process's cgroup and of those around it leave; version 2's files, then version 1's."""
    rooms = [sys.maxsize]
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        here = top / path.lstrip("/")
        for group in (here, *here.parents):
            if group.is_relative_to(top):
                with suppress(OSError, ValueError):  # no limit, or another's
                    limit, used = (int((group / name).read_text()) for name in names[:2])
                    pages = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                    rooms.append(limit - used + int(pages.get(names[2], 0)))  # files that were read can go
    return rooms


def gib(size: float) -> str:
    """Such as 79.1 GiB."""
    return f"{size / 2**30:.1f} GiB"
