"""The budget: what may be set of it, and what the search makes of that."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esformer.errors import ESFormerError
from esformer.model.cost import PAPER_MACS, Budget, paper_macs

if TYPE_CHECKING:
    from pipelines.config import Config

AUTO = "auto"


@dataclass
class BudgetConfig:
    """What the network may cost; null is no limit."""

    params: float | None = None
    """Most parameters, with the classifier for the classes of the data."""
    macs: float | str | None = None
    """Most multiply-accumulates of one image of the data's size. `auto` is the paper's of the size (Table 3: 0.4, 0.9
    and 1.4 G at 224 pixels), brought to the data's pixels and classes as those of EfficientFormerV2 scale."""
    latency_ms: float | None = None
    """Most milliseconds for one image of the data's size, measured on what searches (search.accelerator), on one CPU
    thread; other load on the machine disturbs it, so on the CPU it wants search.workers=1."""

    def __post_init__(self) -> None:
        for name, least in (("params", 1), ("macs", 1), ("latency_ms", 0)):
            limit = getattr(self, name)
            if isinstance(limit, str):
                if limit != AUTO:
                    raise ESFormerError(f"{name} is {limit!r}; it must be a number, {AUTO} or null")
            elif limit is not None and not (least <= limit < math.inf and limit > 0):
                raise ESFormerError(f"{name} is {limit}; it must be {'at least 1' if least else 'above 0'}")


def budget(config: "Config") -> Budget:
    """The budget of a configuration's search, in numbers."""
    b = config.budget
    macs = _auto(config) if isinstance(b.macs, str) else b.macs
    return Budget(
        params=None if b.params is None else int(b.params),
        macs=None if macs is None else int(macs),
        latency_ms=b.latency_ms,
    )


def explain_auto(config: "Config") -> str:
    """What `budget.macs=auto` is for the images of a configuration, and where that comes from."""
    size, classes = config.size, config.data.num_classes
    return (
        f"{_auto(config):,} at {config.data.img_size} pixels and"
        f" {'1000 classes until they are counted' if classes is None else f'{classes} classes'};"
        f" the paper's {PAPER_MACS[size] / 1e9:g} G of {size} at 224 and 1000, scaled as EfficientFormerV2-{size}"
    )


def _auto(config: "Config") -> int:
    return paper_macs(config.size, config.data.img_size, config.data.num_classes or 1000)
