"""What is in a weights file, whatever its kind."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from esformer.benchmarks.trained import AnyArchitecture
from esformer.checkpoint.versions import FORMAT
from esformer.errors import ESFormerError
from esformer.files import write_bytes
from esformer.model.weights import Weights

KEY, DIGEST = "esformer", "sha256"
"""Under which what is known of weights, and the digest of it all, stand in the metadata of a safetensors file."""


class CheckpointError(ESFormerError):
    """A file that holds no network of ours; says why."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights, the architecture that they are of, and all that is known of them.

    Args:
        path: where they were found.
        genotype: the architecture, of any space.
        num_classes: outputs of the classifier; 0 if there is none.
        in_chans: channels of the image.
        img_size: height and width of the image in pixels.
        raw: the weights as the last step left them; None if only their average was kept.
        averaged: their exponential moving average; None if there is none.
        version: the version of the code that wrote them.
        recipe: how they were trained.
        data: the images that they were trained on: `name`, `classes`, and how an image is prepared (`mean`, `std`,
            `interpolation`, `crop_pct`).
        metrics: what was reached on the validation images, as logged: `val/top1` of the raw weights, `val/ema_top1` of
            the averaged ones.
        provenance: where the genotype comes from, such as the search that found it.
        random: whether the weights are as they were drawn, of a network that was never trained; they are `raw`.
    """

    path: Path
    genotype: AnyArchitecture
    num_classes: int
    in_chans: int
    img_size: tuple[int, int]
    raw: Weights | None
    averaged: Weights | None
    version: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    random: bool = False

    def weights(self, ema: bool = True) -> Weights:
        """The averaged weights, if there are any; or the raw ones.

        Raises:
            CheckpointError: the raw ones are asked for, and only their average was kept.
        """
        chosen = self.averaged if ema and self.averaged is not None else self.raw
        if chosen is None:
            raise CheckpointError(f"{self.path} holds averaged weights only; the raw ones were not kept")
        return chosen

    def digest(self, ema: bool = True) -> str:
        """16 hex digits that are others for any other weights: of the sha256 of all names, types, shapes and bytes.

        Raises:
            CheckpointError: the raw ones are asked for, and only their average was kept.
        """
        return digest_of(self.weights(ema))[:16]

    def describe(self, ema: bool = True) -> dict[str, Any]:
        """All but the weights, in plain containers: what travels with weights that are saved alone."""
        kind = "averaged" if ema and self.averaged is not None else "raw"
        return {
            "format": FORMAT,
            "version": self.version,
            "weights": "random" if self.random else kind,
            "genotype": self.genotype.to_dict(),
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "img_size": list(self.img_size),
            "recipe": dict(self.recipe),
            "data": dict(self.data),
            "metrics": dict(self.metrics),
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | os.PathLike[str], ema: bool = True) -> None:
        """Write the weights as a safetensors file, with all that is known of them in its metadata."""
        save_weights(path, self.weights(ema), self.describe(ema))


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a safetensors file that is whole or not there.

    Args:
        path: the file.
        weights: as an ESFormer names them.
        about: as `Checkpoint.describe` gives it.
    """
    whole = {name: value.contiguous() for name, value in weights.items()}
    metadata = {"format": "pt", KEY: json.dumps(about)}
    write_bytes(Path(path), save(whole, metadata | {DIGEST: digest_of(whole, metadata)}))


def digest_of(weights: Mapping[str, Tensor], metadata: Mapping[str, str] = {}) -> str:
    """The sha256 of the names, types, shapes and bytes of all weights, and of metadata but for a digest in it."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    for key, text in sorted(metadata.items()):
        if key != DIGEST:
            found.update(json.dumps([key, text]).encode())
    return found.hexdigest()
