"""What a search asks of a space, so that it searches the ESFormers and any other space alike."""

import os
import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from esformer.choices import Group
from esformer.errors import ESFormerError
from esformer.model.cost import Cost
from esformer.proxies import Proxy
from esformer.search.schedule import Schedule


class Architecture(Protocol):
    """One of a space, such as a `Genotype`: hashable, equal by value."""

    @property
    def space(self) -> str:
        """The name of its space."""

    @property
    def digest(self) -> str:
        """A name that is the same on every machine: 16 hexadecimal digits."""

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as a journal keeps it; of other networks than ESFormers `architecture` says which."""

    def save(self, path: str | os.PathLike[str], comment: str = "") -> None:
        """Write it to a file, headed by `comment`."""


class Space(Protocol):
    """The architectures among which a search chooses: a `SearchSpace`, or a `ScoredSpace`.

    `sample`, `mutate` and `crossover` never leave the space, and depend on nothing but their arguments.
    """

    @property
    def name(self) -> str:
        """As journals have it."""

    @property
    def cardinality(self) -> int:
        """How many architectures there are."""

    def __contains__(self, architecture: object) -> bool: ...

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture drawn uniformly."""

    def mutate(
        self, architecture: Any, rng: random.Random, genes: Group = "all", most: int | None = None
    ) -> Architecture:
        """Another architecture, in which some genes of the group are drawn anew, `most` of them at most.

        Raises:
            ESFormerError: the space has no such genes.
        """

    def crossover(self, a: Any, b: Any, rng: random.Random, genes: Group = "all") -> Architecture:
        """A copy of `a` in which each gene of the group comes from `a` or `b`."""

    def cheapest(self, weigh: Callable[[Any], float]) -> Architecture:
        """The architecture of least cost."""


@runtime_checkable
class ScoredSpace(Space, Protocol):
    """A space of other networks than ESFormers: it says itself what they cost, and scores them."""

    @property
    def img_size(self) -> int:
        """Pixels of the images on which its networks are scored."""

    @property
    def num_classes(self) -> int:
        """Classes of its networks."""

    @property
    def digest(self) -> str:
        """Of all that it knows: a search of a table that was changed is another search."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of genes that it has, of topology and size."""

    @property
    def scores(self) -> Mapping[str, Callable[[Any], float]]:
        """What it knows of an architecture and can drive a search as proxies do, such as a trained accuracy."""

    def cost(self, architecture: Any) -> Cost:
        """Parameters and MACs of its network."""

    def score(
        self,
        proxy: Proxy,
        architecture: Any,
        seed: int,
        draws: int | None = None,
        images: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> float:
        """What a proxy gives its network.

        Raises:
            ProxyError: it cannot be scored.
        """


def check_scored(space: ScoredSpace, schedule: Schedule, timed: bool) -> None:
    """Refuse what only a search of ESFormers can do.

    Args:
        space: what is searched.
        schedule: how.
        timed: whether latencies count.

    Raises:
        ESFormerError: says what is refused, and what is not.
    """
    if lacking := [phase for phase in schedule.phases() if phase.genes not in (*space.groups, "all")]:
        raise ESFormerError(
            f"phase {lacking[0].name} changes {lacking[0].genes} genes, and space {space.name} has"
            f" {' and '.join(space.groups)} genes alone; with joint_proxy all genes change in every phase"
        )
    if timed or schedule.family:
        raise ESFormerError(f"space {space.name} is searched without a family and without a latency in the budget")
