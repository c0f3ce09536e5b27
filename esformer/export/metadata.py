"""Metadata of a network within its exported file, for ONNX and the runtimes of apps; other formats hold it whole."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from esformer.checkpoint.content import KEY


def metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """All that is known, as JSON under `esformer`; and what an app must know, so far as it is known, each by itself.

    That is `image_size` (height and width), `image_mean` and `image_std` (a number a channel, of values from 0 to 1)
    and `class_names`, each in JSON too.

    Args:
        about: as `Checkpoint.describe` gives it.
    """
    data = about["data"]
    values: dict[str, Any] = {KEY: about, "image_size": about["img_size"]}
    values |= {f"image_{word}": of_channels(data[word], about["in_chans"]) for word in ("mean", "std") if word in data}
    values |= {"class_names": data["classes"]} if data.get("classes") else {}
    return {key: json.dumps(value) for key, value in values.items()}


def of_channels(values: Sequence[float], chans: int) -> list[float]:
    """Averaged where the image has other channels, as `esformer.model.registry` and timm's scripts do."""
    return list(values) if len(values) == chans else [sum(values) / len(values)] * chans
