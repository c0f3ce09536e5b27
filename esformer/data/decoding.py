"""From encoded bytes to the uint8 crop that a batch is made of: with PIL alone, or faster with torchvision.

Both decode to the same pixels, draw the same crops and flips, and augment with timm's PIL operators. torchvision's
resize is vectorised and rounds otherwise: few values differ, nearly all by 1 (docs/results/speed.md).
"""

import io
import random
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize, v2

from esformer.data.base import DataError
from esformer.data.datasets import DataConfig

FAST_INTERPOLATIONS = ("bilinear", "bicubic", "random")
"""What torchvision resizes as PIL does: its nearest takes other pixels, and its Lanczos is not in all versions."""
PIXELS = 178_956_970
"""Pillow's limit against decompression bombs: 716 MB in RGB."""
SLIMMEST = 100
"""Times that a side is longer than the other: evaluation brings the shorter one to its size, and the other with it."""


def check_dimensions(width: int, height: int) -> None:
    """Refuse an image by what its header says, before any memory is taken for its pixels.

    Raises:
        ValueError: says what is too much.
    """
    if width * height > PIXELS:
        raise ValueError(f"it says that it has {width:,} x {height:,} pixels, and at most {PIXELS:,} are decoded")
    if max(width, height) > SLIMMEST * min(width, height):
        raise ValueError(f"{width:,} x {height:,} pixels, one side more than {SLIMMEST} times the other")


def decode_jpeg(data: bytes) -> Tensor | None:
    """The pixels of a colour JPEG, C, H, W, equal to PIL's; None leaves the image to PIL.

    PIL reads the header, and has what it refuses, or reads in a way of its own (such as CMYK). It also has what
    torchvision refuses.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            check_dimensions(*image.size)
            if image.format != "JPEG" or image.mode != "RGB":
                return None
            return torchvision.io.decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
    except Exception:  # PIL finds the words for it
        return None


def decodes_fast(config: DataConfig) -> bool:
    """Whether JPEGs are decoded and resized by torchvision.

    Raises:
        DataError: they are to be, but this torchvision has no decoder; PIL's pixels would not be what the run says.
    """
    fast = config.decoder == "torchvision" and config.interpolation in FAST_INTERPOLATIONS
    if fast and not _has_decoder():
        raise DataError(f"torchvision {torchvision.__version__} decodes no JPEGs here; data.decoder=pil does")
    return fast


@cache
def _has_decoder() -> bool:
    """Not in builds without libjpeg, and perhaps not for ever: deprecated since torchvision 0.29."""
    Image.new("RGB", (8, 8)).save(file := io.BytesIO(), "JPEG")
    return decode_jpeg(file.getvalue()) is not None


def evaluation_transform(config: DataConfig) -> Compose:
    """The resize and central crop of timm. PIL image, or uint8 tensor C, H, W -> uint8 H, W, C."""
    *steps, _ = create_transform(
        config.img_size,
        interpolation=config.evaluation_interpolation,
        crop_pct=config.crop_pct,
        use_prefetcher=True,
    ).transforms
    return Compose([*map(_takes_tensors, steps), _channels_last])


def training_transform(
    config: DataConfig, auto_augment: str | None, color_jitter: Sequence[float] = (), crop_padding: int = 0
) -> Compose:
    """The random crop, flip and RandAugment of timm. PIL image, or uint8 tensor C, H, W -> uint8 H, W, C.

    Args:
        config: the images.
        auto_augment: in timm's notation.
        color_jitter: of brightness, contrast, saturation and hue; nothing is none.
        crop_padding: pixels around the image out of which the crop is taken; 0 resizes crops.
    """
    lanczos = config.interpolation == "lanczos"  # which PIL has for resizing only, not for RandAugment's rotations
    crop, augment, _ = create_transform(
        config.img_size,
        is_training=True,
        interpolation="bicubic" if lanczos else config.interpolation,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        hflip=config.hflip,
        color_jitter=tuple(color_jitter) or 0.0,
        auto_augment=auto_augment,
        mean=config.mean,  # the colour of what RandAugment moves in
        use_prefetcher=True,
        separate=True,
    )
    if lanczos:
        crop.transforms[0].interpolation = InterpolationMode.LANCZOS
    if crop_padding:
        crop.transforms[:1] = _padded_crop(config, crop_padding)
    to_pil = [_to_pil] if auto_augment or color_jitter else []
    steps = [*map(_takes_tensors, crop.transforms), *to_pil, *augment.transforms]
    return Compose([*steps, _channels_last])


def _padded_crop(config: DataConfig, padding: int) -> list[Any]:
    """A crop out of the image in a black frame, as is usual for CIFAR's; images of another size are resized first."""
    resize = Resize(config.img_size, InterpolationMode(config.evaluation_interpolation))
    return [resize, RandomCrop(config.img_size, padding)]


class ResizedCrop(RandomResizedCropAndInterpolation):
    """timm's random crop with the same draws, which also takes tensors and resizes their bytes without floats."""

    def __call__(self, image: Any) -> Any:
        if not isinstance(image, Tensor):
            return super().__call__(image)
        top, left, height, width = self.get_params(image, self.scale, self.ratio)
        several = isinstance(self.interpolation, tuple)
        interpolation = random.choice(self.interpolation) if several else self.interpolation
        crop = image[None, :, top : top + height, left : left + width]
        crop = crop.contiguous(memory_format=torch.channels_last)  # or it leaves the resize as C, H, W, slow to turn
        return v2.functional.resize(crop, self.size, interpolation)[0]


def _takes_tensors(step: Any) -> Any:
    """A step of timm's that resizes tensors as it does PIL images; the first transforms API makes them floats."""
    if type(step) is RandomResizedCropAndInterpolation:
        step.__class__ = ResizedCrop
    elif type(step) is Resize:
        return v2.Resize(step.size, step.interpolation)
    return step


def _to_pil(image: Any) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy()) if isinstance(image, Tensor) else image


def _channels_last(image: Any) -> Tensor:
    """PIL image, or C, H, W -> H, W, C. timm's last step would make C, H, W of a PIL image."""
    if isinstance(image, Tensor):
        return image.permute(1, 2, 0).contiguous()
    return torch.from_numpy(np.array(image))
