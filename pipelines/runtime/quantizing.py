"""An export in int8: the images that it is calibrated and judged on, and whether it is as accurate as in float32."""

import argparse
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.compose import compose
from esformer.checkpoint import Checkpoint
from esformer.data.base import IGNORE
from esformer.data.datamodule import EvaluationDataModule, ValidationImages
from esformer.data.datasets import resolve
from esformer.data.images import Subset
from esformer.data.sample import sample_images
from esformer.errors import STOPPED
from esformer.export import FORMATS, ExportError
from esformer.export.comparing import About, Computes
from esformer.export.formats import Format
from esformer.export.quantizing import Source, quantize
from pipelines.runtime.evaluating import EvaluationError, check, defaults_of
from pipelines.runtime.signals import stop

log = logging.getLogger("esformer")

CALIBRATION, LARGEST_DROP = 256, 0.5
"""Images to calibrate on, and points of top-1 that may be lost, unless told otherwise."""
BATCH = 64
"""Validation images that are shown at a time."""


@dataclass(frozen=True)
class Int8Images:
    """What an export in int8 looks at.

    Args:
        calibration: training images, prepared as in evaluation: N, 3, H, W.
        validation: the images that its accuracy is judged on.
    """

    calibration: Tensor
    validation: EvaluationDataModule


def check_options(options: argparse.Namespace, kind: Format) -> None:
    """Refuse what is for exports in int8 alone, or not for this format.

    Raises:
        ExportError: says what may be.
    """
    flags = ("calibration_images", "evaluate_images", "largest_drop")
    asked = [f"--{name.replace('_', '-')}" for name in flags if getattr(options, name) is not None]
    if not options.quantize and (given := [*asked, *options.settings]):
        raise ExportError(f"{given[0]} is for an export in int8, with --quantize")
    if options.quantize and kind.quantize is None:
        able = [name for name, one in FORMATS.items() if one.quantize is not None]
        raise ExportError(f"--quantize is for --to {', '.join(able[:-1])} and {able[-1]}, not for {options.to}")
    for name in flags[:2]:
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ExportError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    if options.largest_drop is not None and not 0 <= options.largest_drop <= 100:
        raise ExportError(f"--largest-drop is {options.largest_drop:g}; it must be from 0 to 100 points")
    for setting in options.settings:
        key = setting.partition("=")[0]
        if key != "data" and not key.startswith("data."):
            raise ExportError(f"{setting} is no setting of an export in int8; it takes data=... and data.KEY=...")
        if key == "data.img_size":
            raise ExportError("give --img-size in place of data.img_size")


def int8_images(options: argparse.Namespace, found: Checkpoint, img_size: tuple[int, int]) -> Int8Images:
    """The images of a checkpoint's own kind, or those that the settings name, as `pipelines.evaluate` takes them.

    Args:
        options: what `pipelines.export.parse` gives.
        found: the checkpoint.
        img_size: height and width in pixels.

    Raises:
        ESFormerError: they are not there, or not such as the network takes.
    """
    height, width = img_size
    if height != width:
        raise ExportError(f"--quantize looks at images, and ours are square, not {height} x {width} pixels")
    settings = [*options.settings, f"data.img_size={height}"]
    config = compose(None, False, [*defaults_of(found, settings), *settings]).data
    validation = EvaluationDataModule(resolve(config, train=False), BATCH)
    validation.setup("validate")
    check(found, validation)
    if (limit := options.evaluate_images) is not None and limit < len(validation.val_set):
        chosen = np.random.default_rng(0).permutation(len(validation.val_set))[:limit]
        validation.val_set = ValidationImages(Subset(validation.val_set.dataset, chosen), height)
    calibration, _ = sample_images(config, options.calibration_images or CALIBRATION)
    return Int8Images(calibration, validation)


def write_int8(
    kind: Format, source: Source, target: Path, about: About, images: Int8Images, largest_drop: float
) -> dict[str, Any]:
    """Write a graph in int8, and judge it: what was done, and what it reaches.

    Args:
        kind: the format.
        source: the network in float32, and its graph in that format.
        target: the file to write.
        about: as `Checkpoint.describe` gives it.
        images: to calibrate and to judge on.
        largest_drop: points of top-1 that may be lost.

    Raises:
        ExportError: it loses more.
        SystemExit: a stop was asked for.
    """
    assert kind.quantize is not None
    log.info("quantising to int8, on %d training images", len(images.calibration))
    with kind.refusals():
        done = quantize(kind.quantize, partial(opened, kind), source, target, images.calibration, about, _stop_if_asked)
    _stop_if_asked()
    (before, after), count = hits([source.network, opened(kind, target)], images.validation)
    reached = f"top-1 of {count:,} validation images is {after / count:.2%} in int8, {before / count:.2%} in float32"
    if 100 * (before - after) > largest_drop * count:
        raise ExportError(
            f"{reached}, a fall of more than {largest_drop:g} points, so it is not kept; try more --calibration-images,"
            " or allow more with --largest-drop"
        )
    log.info(reached)
    return {
        "float": list(done.kept),
        "calibration_images": len(images.calibration),
        "output_error": done.error,
        "images": count,
        "float32_top1": before / count,
        "int8_top1": after / count,
        "float32_bytes": size_of(source.graph, kind),
        "int8_bytes": size_of(target, kind),
        "data": images.validation.config.name,
    }


def opened(kind: Format, path: Path) -> Computes:
    """What a file of a format that runs here computes."""
    computes = kind.read(path)
    assert computes is not None
    return computes


@torch.no_grad()
def hits(networks: list[Computes], data: EvaluationDataModule) -> tuple[list[int], int]:
    """How many validation images each network gets right, and of how many; what cannot be read is not counted.

    Raises:
        EvaluationError: no image can be read.
        SystemExit: a stop was asked for.
    """
    right, count = [0] * len(networks), 0
    for batch in data.val_dataloader():
        batch = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
        images = batch.images.contiguous()
        for number, network in enumerate(networks):
            right[number] += int((network(images).argmax(1) == batch.targets).sum())
        count += int((batch.targets != IGNORE).sum())
        _stop_if_asked()
    if not count:
        raise EvaluationError(f"none of the {len(data.val_set)} images can be read")
    return right, count


def size_of(path: Path, kind: Format) -> int:
    """Bytes of an export, which may be two files."""
    return sum(one.stat().st_size for one in (path, *([path.with_suffix(kind.weights)] if kind.weights else [])))


def _stop_if_asked() -> None:
    if stop.asked:
        raise SystemExit(STOPPED)
