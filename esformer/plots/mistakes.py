"""Images that a network takes for what they are not, as a picture."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esformer.files import write_bytes
from esformer.text import printable
from esformer.training.evaluation import Mistakes

COLUMNS, INCHES, DPI = 6, 2.0, 110
"""Images in a row; of an image and its words; dots an inch."""
LENGTH = 16
"""Letters of a class's name, at most."""


def draw_mistakes(
    mistakes: Mistakes, classes: Sequence[str], mean: Sequence[float], std: Sequence[float], title: str, path: Path
) -> None:
    """Draw images, and below each its class and what it was taken for.

    Args:
        mistakes: at least one.
        classes: C names.
        mean: of each channel, which has been subtracted from values from 0 to 1.
        std: of each channel, by which these have been divided.
        title: stands above.
        path: the PNG; it is whole or not there.
    """
    from matplotlib.figure import Figure

    count = len(mistakes.images)
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(COLUMNS * INCHES, rows * (INCHES + 0.5) + 0.5), dpi=DPI, layout="constrained")
    pixels = mistakes.images.permute(0, 2, 3, 1).numpy() * np.array(std, np.float32) + np.array(mean, np.float32)
    figures = zip(mistakes.classes.tolist(), mistakes.taken_for.tolist(), mistakes.confidence.tolist(), strict=True)
    for place, (image, (own, other, confidence)) in enumerate(zip(pixels, figures, strict=True)):
        ax = figure.add_subplot(rows, COLUMNS, place + 1)
        ax.imshow(image.clip(0, 1))
        ax.set(xticks=[], yticks=[])
        words = f"{_short(classes[own])}\ntaken for {_short(classes[other])} ({confidence:.0%})"
        ax.set_xlabel(words, fontsize=8, parse_math=False)
    figure.suptitle(printable(title), fontsize=10, parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_bytes(path, picture.getvalue())


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LENGTH else f"{name[: LENGTH - 1]}…"
