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
from typing import Any

import yaml

from esformer.errors import ESFormerError
from esformer.files import write_text
from esformer.proxies import ProxyError


def digest(known: Any) -> str:
    """A name of plain containers that is the same on every machine: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class GeneArchitecture:
    """An architecture of a `GeneSpace`.

    Args:
        space: the name of its space.
        notation: the architecture, as the space writes it.
    """

    space: str
    notation: str

    @cached_property
    def digest(self) -> str:
        """A name that is the same on every machine: 16 hexadecimal digits."""
        return digest(self.to_dict())

    def __str__(self) -> str:
        return self.notation

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as a journal keeps it."""
        return {"space": self.space, "architecture": self.notation}

    def save(self, path: str | os.PathLike[str], comment: str = "") -> None:
        """Write it as YAML, headed by `comment`.

        Args:
            path: the file; it is replaced as a whole, or not at all.
            comment: lines for people.
        """
        head = "".join(f"# {line}\n" for line in comment.splitlines())
        write_text(Path(path), head + yaml.safe_dump(self.to_dict(), sort_keys=False, width=1000))


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
