"""An architecture of a `GeneSpace`, and how good one is among all that were trained."""

import hashlib
import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import yaml

from esformer.errors import ESFormerError
from esformer.files import write_text
from esformer.proxies import ProxyError

SCALE = {"channels": 10_000, "layers": 1_000}
"""What a file may say of a network's width and depth, and the most of each."""


class ArchitectureError(ESFormerError):
    """What is no architecture of any space; says what it is instead."""


def digest(known: Any) -> str:
    """A name of plain containers that is the same on every machine: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class GeneArchitecture:
    """An architecture of a `GeneSpace`.

    Args:
        space: the name of its space.
        notation: the architecture, as the space writes it.
        channels: of the network to be trained, where its space leaves them open; None takes what is published.
        layers: of that network, likewise.
    """

    space: str
    notation: str
    channels: int | None = None
    layers: int | None = None

    @cached_property
    def digest(self) -> str:
        """A name that is the same on every machine: 16 hexadecimal digits."""
        return digest(self.to_dict())

    def __str__(self) -> str:
        return self.notation

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as a journal keeps it."""
        scale = {name: getattr(self, name) for name in SCALE if getattr(self, name) is not None}
        return {"space": self.space, "architecture": self.notation, **scale}

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """What `to_dict` gave; whether the space has it, only the space knows.

        Args:
            content: plain containers.

        Raises:
            ArchitectureError: it is none.
        """
        known = ("space", "architecture", *SCALE)
        if not isinstance(content, dict) or not set(content) <= set(known):
            raise ArchitectureError(f"is {_short(content)}; it must be a mapping of {', '.join(known)}")
        for name in known[:2]:
            if not isinstance(content.get(name), str) or not content[name]:
                raise ArchitectureError(f"{name} is {_short(content.get(name))}; it must be text")
        for name, most in SCALE.items():
            value = content.get(name)
            if value is not None and not (type(value) is int and 1 <= value <= most):
                raise ArchitectureError(f"{name} is {_short(value)}; it must be a whole number from 1 to {most:,}")
        return cls(content["space"], content["architecture"], *map(content.get, SCALE))

    def save(self, path: str | os.PathLike[str], comment: str = "") -> None:
        """Write it as YAML, headed by `comment`.

        Args:
            path: the file; it is replaced as a whole, or not at all.
            comment: lines for people.
        """
        head = "".join(f"# {line}\n" for line in comment.splitlines())
        write_text(Path(path), head + yaml.safe_dump(self.to_dict(), sort_keys=False, width=1000))


@dataclass(frozen=True)
class NetworkSettings:
    """How a network is to be built that is trained, not scored.

    Args:
        num_classes: of the images.
        img_size: their height and width in pixels.
        drop_path: the share of images that skip a path.
        by_depth: whether this share grows linearly along the network, to its end; else it is that of every path.
        auxiliary: whether there is an auxiliary classifier, a part called `auxiliary`: in training mode the network
            then gives two tensors of logits, its own and those.
        channels: of the network, where the space leaves them open; None takes what is published.
        layers: likewise.
    """

    num_classes: int
    img_size: int
    drop_path: float = 0.0
    by_depth: bool = True
    auxiliary: bool = False
    channels: int | None = None
    layers: int | None = None


@contextmanager
def said_of(space: str, notation: str) -> Iterator[None]:
    """Whatever goes wrong with a network is said of its architecture: somebody's space can raise anything.

    Args:
        space: its name.
        notation: the architecture, as the space writes it.

    Raises:
        ProxyError: in place of what was raised.
    """
    try:
        yield
    except ESFormerError as error:
        raise ProxyError(f"architecture {notation} of space {space}: {error}") from error
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ProxyError(
            f"architecture {notation} of space {space} cannot be built or scored: {type(error).__name__}: {error}"
            f" ({frame.filename}, line {frame.lineno})"
        ) from error


@dataclass(frozen=True)
class Standing:
    """How good an architecture is among all of known accuracy that a budget allows.

    Args:
        accuracy: of the trained network, in percent.
        rank: 1 is the best; equal accuracies share the better rank.
        among: how many the budget allows.
        best: the highest accuracy among them.
        regret: what is lacking to it, in percentage points.
    """

    accuracy: float
    rank: int
    among: int
    best: float
    regret: float

    def __str__(self) -> str:
        return (
            f"{self.accuracy:.2f} %, rank {self.rank:,} of {self.among:,}; the best has {self.best:.2f} %,"
            f" so the regret is {self.regret:.2f}"
        )


def _short(value: Any) -> str:
    """A value of a file that may be forged, short enough for a message."""
    try:
        return "missing" if value is None else repr(value)[:60]
    except (ValueError, RecursionError):  # an integer beyond what Python prints, or lists without end
        return f"a {type(value).__name__}"
