"""A file that `pipelines.export` wrote, opened again: what it says of itself, and the network that its runtime runs."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esformer.checkpoint.content import KEY, Checkpoint, CheckpointError
from esformer.checkpoint.files import described
from esformer.export.comparing import Computes, ExportError
from esformer.export.formats import FORMATS, Format
from esformer.model.weights import Weights

BLOCK = 1 << 20
"""Bytes of a file that are read at a time."""
SHOWN = 200
"""Characters of what a library says of a file that it cannot open."""


@dataclass(frozen=True, kw_only=True)
class Exported(Checkpoint):
    """What is known of a network as of any checkpoint; but it is a program for a runtime, whose weights stay within.

    Args:
        kind: of the file.
        about: what it says of itself, as `Checkpoint.describe` gave it when it was written.
    """

    raw: Weights | None = None
    averaged: Weights | None = None
    kind: Format
    about: Mapping[str, Any]

    def weights(self, ema: bool = True) -> Weights:
        """None that could be had.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{self.path} holds a program, whose weights are not to be had; take the checkpoint")

    def digest(self, ema: bool = True) -> str:
        """16 hex digits of the sha256 of the file, or of both where it is two."""
        found = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    found.update(block)
        return found.hexdigest()[:16]

    def describe(self, ema: bool = True) -> dict[str, Any]:
        """What the file says of itself."""
        return dict(self.about)

    @property
    def files(self) -> list[Path]:
        """The file, and that of its weights where these are apart."""
        return [self.path, *([self.path.with_suffix(self.kind.weights)] if self.kind.weights else [])]

    def network(self) -> nn.Module:
        """The network, run by its runtime on the CPU; tried on an image of the size that the file says.

        Raises:
            ExportError: the runtime does not open it, or it is not the network that it says it is.
        """
        with _sentence("cannot be opened by its runtime; is it damaged?", self.path):
            computes = self.kind.read(self.path)
        assert computes is not None
        height, width = self.img_size
        with _sentence(f"does not take the images that it says it does, {height} x {width} pixels", self.path):
            outputs = computes(torch.zeros(1, self.in_chans, height, width))
        if outputs.shape != (1, self.num_classes):
            raise ExportError(f"{self.path} says that it tells {self.num_classes} classes apart, and does not")
        return Program(computes, self.kind.own_threads)


class Program(nn.Module):
    """What a runtime computes as a module: B, C, H, W -> B, num_classes, float32, on the CPU.

    Args:
        computes: the same as a function.
        own_threads: whether the runtime chooses how many threads it takes.
    """

    def __init__(self, computes: Computes, own_threads: bool = False) -> None:
        super().__init__()
        self.computes, self.own_threads = computes, own_threads

    def forward(self, images: Tensor) -> Tensor:
        return self.computes(images.float().contiguous())


def exported_kind(name: str) -> Format | None:
    """The format of a file that can be opened with `open_exported`, by how its name ends; None if it is no such file.

    Args:
        name: of a file, or of anything else that a network can be loaded by.
    """
    ending = Path(name).suffix
    return next((kind for kind in FORMATS.values() if kind.told and kind.suffix == ending), None)


def open_exported(path: Path, kind: Format) -> Exported:
    """What an exported file says of itself.

    Args:
        path: the file.
        kind: its format.

    Raises:
        ExportError: a package that runs it is missing, it cannot be read, or says nothing of itself.
        CheckpointError: it says what cannot be.
    """
    assert kind.told is not None
    kind.check_runtime()
    for needed in (path, *([path.with_suffix(kind.weights)] if kind.weights else [])):
        if not needed.is_file():
            raise ExportError(f"{needed} {'is not a file' if needed.exists() else 'does not exist'}")
    with _sentence("cannot be opened by its runtime; is it damaged?", path):
        text = kind.told(path)
    if text is None:
        raise ExportError(
            f"{path} does not say what it is (it has no metadata {KEY!r}), so it is not one that pipelines.export wrote"
        )
    fields, about = described(path, text), json.loads(text)
    left = about.get("quantized", {"float": []})
    if not isinstance(left, dict) or not isinstance(left.get("float"), list):
        raise ExportError(f"{path} does not say what was left in float (quantized: {str(left)[:SHOWN]})")
    return Exported(**fields, kind=kind, about=about)


@contextmanager
def _sentence(wrong: str, path: Path) -> Iterator[None]:
    """Say in a sentence what the libraries of runtimes raise, each in its own way, where a file is not right."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:SHOWN] or type(error).__name__
        raise ExportError(f"{path} {wrong} ({reason})") from None
