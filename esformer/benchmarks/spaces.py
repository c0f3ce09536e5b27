"""The spaces that a search knows by name, and the way in for other people's."""

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from esformer import plugins
from esformer.benchmarks import get
from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.darts_space import DartsSpace
from esformer.benchmarks.gene_space import GeneSpace
from esformer.benchmarks.space import TableSpace
from esformer.search.space import ScoredSpace

TABLES = ("nats-tss", "nats-sss", "channel-bench-resnet", "nasbench101", "esformer")
"""The benchmarks whose tables are spaces."""
Opener = Callable[[str | os.PathLike[str] | None, str | None], Any]
_Opener = TypeVar("_Opener", bound=Opener)
_SPACES: dict[str, Opener] = {DartsSpace.name: DartsSpace}
_BUILT_IN = (*TABLES, *_SPACES)


def register_space(space: _Opener) -> _Opener:
    """Make a space known as `--space NAME`; a decorator of its class.

    Commands find it if an installed package names its module as an entry point of the group `esformer.spaces`.

    Args:
        space: a subclass of `GeneSpace`; or whatever has a `name` and, called with a table and a dataset (each may be
            None), gives an `esformer.search.space.ScoredSpace`.

    Raises:
        BenchmarkError: it has no name, or the name cannot be one or is taken.

    Examples:
        >>> from esformer import GeneSpace
        >>> from torch import nn
        >>> @register_space
        ... class Widths(GeneSpace):
        ...     name, group = "widths", "size"
        ...     genes = (("8", "16", "32"),)
        ...
        ...     def network(self, values):
        ...         width = int(values[0])
        ...         conv, linear = nn.Conv2d(3, width, 3), nn.Linear(width, self.num_classes)
        ...         return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
        >>> open_space("widths").cardinality
        3
    """
    name = getattr(space, "name", None)
    if not callable(space) or not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_-]*", name):
        raise BenchmarkError(
            f"{space} has the name {name!r}; a space is a class whose `name` is small letters, digits, _ and -"
        )
    if name in _BUILT_IN or plugins.is_taken(_SPACES.get(name), space):
        raise BenchmarkError(f"there is a space {name!r} already; choose another name")
    _SPACES[name] = space
    return space


def space_names() -> list[str]:
    """What `open_space` knows, those that others registered last."""
    plugins.load(plugins.SPACES)
    return [*_BUILT_IN, *sorted({*_SPACES}.difference(_BUILT_IN))]


def open_space(name: str, table: str | os.PathLike[str] | None = None, dataset: str | None = None) -> ScoredSpace:
    """A space by its name, for `esformer.search`.

    Args:
        name: one of `space_names`.
        table: the file of known accuracies, where it has one.
        dataset: on which they were reached, if there are several.

    Raises:
        BenchmarkError: there is no such space, its table is not given or cannot be read.

    Examples:
        >>> f"{open_space('darts').cardinality:.3g}"
        '1.08e+18'
    """
    if name in TABLES:
        benchmark = get(name)
        if (table := table or benchmark.shipped) is None:
            raise BenchmarkError(f"space {name} needs its table: give the file with --table (space.table)")
        return TableSpace(benchmark, table, dataset)
    if name not in _SPACES:
        plugins.load(plugins.SPACES)
    if name not in _SPACES:
        raise BenchmarkError(f"there is no space {name!r}; there are {', '.join(space_names())}")
    space = _SPACES[name](table, dataset)
    if not isinstance(space, ScoredSpace):
        raise BenchmarkError(f"space {name} gives {space!r}, which is no esformer.search.space.ScoredSpace")
    return space


def open_to_build(name: str) -> GeneSpace:
    """A space by the name that its architectures have, without a table: to build their networks.

    Args:
        name: as `GeneArchitecture.space`, with the dataset of a table behind a `/`.

    Raises:
        BenchmarkError: there is no such space, or it does not say how its networks are built.
    """
    base = name.partition("/")[0]
    space = TableSpace(get(base), None) if base in TABLES else open_space(base)
    if not isinstance(space, GeneSpace):
        raise BenchmarkError(f"space {base} is no GeneSpace, so it does not say how its networks are built")
    return space
