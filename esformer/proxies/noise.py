"""A batch of noise, for proxies that look at images where there are none."""

import numpy as np

NOISE_CLASSES = 1000
"""Classes of the labels of noise, as many as a genotype has when it is scored."""


def noise_batch(size: int, img_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal images, B, 3, H, W, and random labels, B; the same on every machine."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((size, 3, img_size, img_size), dtype=np.float32)
    return images, rng.integers(NOISE_CLASSES, size=size)
