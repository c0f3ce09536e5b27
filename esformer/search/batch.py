"""The images that a search shows to every genotype, for proxies that look at a batch (NASWOT, ZiCo, ...)."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from torch import Tensor

from esformer.errors import ESFormerError
from esformer.proxies import get
from esformer.proxies.noise import noise_batch


def looks_at_a_batch(proxies: Iterable[str]) -> bool:
    """Whether any of some proxies needs a batch."""
    return any(get(name).needs == "batch" for name in proxies)


@dataclass(frozen=True, eq=False)
class Batch:
    """Images and labels as numpy arrays: they are pickled to workers and to ranks on other machines, once for each.

    Args:
        source: `noise`, or `images` if they were given.
        images: B, 3, H, W, float32, normalised.
        labels: the classes of the images, B.
    """

    source: str
    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def noise(cls, size: int, img_size: int, seed: int) -> Self:
        """Noise instead of images, the same on every machine."""
        return cls("noise", *noise_batch(size, img_size, seed))

    @classmethod
    def of(cls, images: Tensor, labels: Tensor | None) -> Self:
        """Given images, with their labels.

        Raises:
            ESFormerError: their shapes do not belong together.
        """
        if labels is None or images.ndim != 4 or not len(images) or labels.shape != images.shape[:1]:
            shapes = f"{tuple(images.shape)} and {None if labels is None else tuple(labels.shape)}"
            raise ESFormerError(f"images and labels are {shapes}; a search takes (B, 3, H, W) and (B)")
        pixels = images.detach().cpu().float().contiguous().numpy().copy()
        return cls("images", pixels, labels.detach().cpu().long().numpy().copy())

    @classmethod
    def needed(
        cls,
        proxies: Iterable[str],
        images: Tensor | None,
        labels: Tensor | None,
        size: int,
        img_size: int,
        seed: int,
        num_classes: int | None = None,
    ) -> Self | None:
        """The batch of a search: the given images, or else noise; None where no proxy looks at any.

        Raises:
            ESFormerError: the images have more classes than the networks.
        """
        if not looks_at_a_batch(proxies):
            return None
        batch = cls.noise(size, img_size, seed) if images is None else cls.of(images, labels)
        if num_classes is None or batch.labels.max() < num_classes:
            return batch
        if images is not None:
            raise ESFormerError(f"the images have class {batch.labels.max()}, but the networks {num_classes} classes")
        return cls("noise", batch.images, batch.labels % num_classes)

    def describe(self) -> dict[str, Any]:
        """What a journal's header keeps of it: a search with other images is another search."""
        digest = hashlib.sha256(self.images.tobytes() + self.labels.astype(np.int64).tobytes()).hexdigest()
        return {"source": self.source, "shape": list(self.images.shape), "sha256": digest}
