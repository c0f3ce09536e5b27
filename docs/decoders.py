"""What `data.decoder` changes: pixels, and images a second on one core.

    python docs/decoders.py FOLDER [WIDTH HEIGHT]

FOLDER holds JPEGs, at any depth. Given a width and a height, speed is measured on the first 100 of them, resized to
that and encoded anew with quality 90; the pixels are those of all images as they are.
"""

import argparse
import io
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from esformer.data.datamodule import seed_all
from esformer.data.datasets import DataConfig
from esformer.data.decoding import decode_jpeg, decodes_fast, evaluation_transform, training_transform
from esformer.data.images import decode

RANDAUGMENT = "rand-m7-n1"
ROUNDS = 21


class Prepared:
    """What a network gets to see of images, with one decoder.

    Args:
        config: which one, and how images are resized.
        train: crop at random.
        auto_augment: RandAugment, in timm's notation.
    """

    def __init__(self, config: DataConfig, train: bool, auto_augment: str | None = None) -> None:
        self.fast = decodes_fast(config)
        self.transform = training_transform(config, auto_augment) if train else evaluation_transform(config)

    def __call__(self, number: int, data: bytes) -> torch.Tensor:
        seed_all(0, number)
        image: Any = decode_jpeg(data) if self.fast else None
        return self.transform(decode(data) if image is None else image)


def configured(decoder: str, interpolation: str = "bicubic", img_size: int = 224) -> DataConfig:
    """ImageNet's settings but for these."""
    return DataConfig(decoder=decoder, interpolation=interpolation, img_size=img_size)


def pixels(images: list[bytes]) -> None:
    """By how much values differ, over all images."""
    print("| interpolation, pixels | what | differ | by more than 1 | at most |\n|---|---|---|---|---|")
    for interpolation, img_size, train in product(("bicubic", "bilinear"), (224, 96), (True, False)):
        pil, fast = (Prepared(configured(name, interpolation, img_size), train) for name in ("pil", "torchvision"))
        differ = more = most = values = 0
        for number, data in enumerate(images):
            difference = (pil(number, data).int() - fast(number, data).int()).abs()
            differ, more = differ + int((difference > 0).sum()), more + int((difference > 1).sum())
            most, values = max(most, int(difference.max())), values + difference.numel()
        what = "training crop" if train else "evaluation"
        shares = f"{100 * differ / values:.2f} % | {100 * more / values:.4f} %"
        print(f"| {interpolation}, {img_size} | {what} | {shares} | {most} |", flush=True)


def speed(images: list[bytes]) -> None:
    """Images a second of processor time, by turns: median and quartiles of the rounds."""
    print("| images a second | pil | torchvision | torchvision / pil |\n|---|---|---|---|")
    for what, train, augment in (
        ("training crop", True, None),
        ("training crop, RandAugment", True, RANDAUGMENT),
        ("evaluation", False, None),
    ):
        ways = {name: Prepared(configured(name), train, augment) for name in ("pil", "torchvision")}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _, (name, way) in product(range(ROUNDS), ways.items()):
            began = time.process_time()
            for number, data in enumerate(images):
                way(number, data)
            rates[name].append(len(images) / (time.process_time() - began))
        ratios = [b / a for a, b in zip(rates["pil"], rates["torchvision"], strict=True)]
        figures = [_spread(values, ".0f") for values in rates.values()] + [_spread(ratios, ".2f")]
        print(f"| {what} | {' | '.join(figures)} |", flush=True)


def _spread(values: list[float], form: str) -> str:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:{form}} ({low:{form}} to {high:{form}})"


def _resized(data: bytes, size: tuple[int, int]) -> bytes:
    decode(data).resize(size, Image.Resampling.BICUBIC).save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("size", type=int, nargs="*", help="width and height")
    given = parser.parse_args()
    torch.set_num_threads(1)  # as in a process that loads images
    images = [path.read_bytes() for path in sorted(given.folder.rglob("*.jp*g"))]
    first = images[:100]
    speed([_resized(data, (given.size[0], given.size[1])) for data in first] if given.size else first)
    pixels(images)


if __name__ == "__main__":
    main()
