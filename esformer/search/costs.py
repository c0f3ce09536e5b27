"""What the genotypes of a search cost, and which of them its budget allows; latencies are predicted or measured."""

import random
from typing import Any

from esformer.errors import ESFormerError
from esformer.model.cost import Budget, Cost, cost
from esformer.model.latency import Latency, measure_latency
from esformer.model.latency_fit import LatencyModel
from esformer.search.journal import Journal
from esformer.search.space import Architecture, ScoredSpace, Space


class Costs:
    """The costs of genotypes: parameters and MACs in closed form, a latency as a table predicts it or as measured.

    Args:
        space: the genotypes there are.
        budget: what one may cost.
        img_size: pixels of the images for which MACs are counted and latencies measured.
        num_classes: classes of the classifier whose parameters are counted.
        device: on what latencies are measured.
        timed: whether latencies count.
        predicted: gives them; None measures them.

    Raises:
        ESFormerError: no genotype fits the budget.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        img_size: int,
        num_classes: int,
        device: str,
        timed: bool,
        predicted: LatencyModel | None = None,
    ) -> None:
        self.space, self.budget, self.device, self.predicted = space, budget, device, predicted
        self.img_size, self.num_classes = img_size, num_classes
        self._priced = space if isinstance(space, ScoredSpace) else None
        self._latencies: dict[str, Latency] = {}
        self._journal: Journal | None = None
        self.cheapest = self._cheapest(timed)
        """The cheapest genotype in terms of the budget, which allows it."""

    def __call__(self, genotype: Any) -> Cost:
        return cost(genotype, self.img_size, self.num_classes) if self._priced is None else self._priced.cost(genotype)

    def of(self, genotype: Architecture, name: str) -> float:
        """A single cost: params, macs or latency_ms."""
        return self.latency_ms(genotype) if name == "latency_ms" else getattr(self(genotype), name)

    def allow(self, genotype: Architecture) -> bool:
        """Whether the budget does."""
        if not self.budget.allows(self(genotype)):
            return False
        return self.budget.latency_ms is None or self.budget.allows_latency(self.latency_ms(genotype))

    def latency_ms(self, genotype: Any) -> float:
        """Milliseconds of one image."""
        if self.predicted is not None:
            return self.predicted(genotype, self.num_classes)
        return self.latency(genotype).ms

    def latency(self, genotype: Any) -> Latency:
        """Measured once, and put on record: a resumed search must decide alike."""
        if genotype.digest not in self._latencies:
            limit = self.budget.latency_ms
            latency = measure_latency(genotype, self.img_size, self.num_classes, self.device, limit_ms=limit)
            self._latencies[genotype.digest] = latency
            if self._journal is not None:
                self._journal.append_latency(genotype.digest, latency)
        return self._latencies[genotype.digest]

    def keep_in(self, journal: Journal) -> None:
        """Take the latencies of a journal, give it those that it lacks and whatever is measured from now on."""
        self._journal = journal
        for digest, latency in (self._latencies | journal.latencies).items():
            self._latencies[digest] = latency
            if digest not in journal.latencies:
                journal.append_latency(digest, latency)

    def _cheapest(self, timed: bool) -> Any:
        if self._priced is not None and self.budget == Budget():
            return self.space.sample(random.Random(0))  # nothing is too dear; to price a whole table can take a minute
        limits = {name: limit for name in ("params", "macs") if (limit := getattr(self.budget, name)) is not None}

        if self.predicted is not None and self.budget.latency_ms is not None:
            limits["latency_ms"] = self.budget.latency_ms

        def weigh(genotype: Architecture) -> float:
            shares = (self.of(genotype, name) / limit for name, limit in limits.items())
            return max(shares, default=float(self(genotype).macs))

        genotype: Any = self.space.cheapest(weigh)
        price = self(genotype)
        costs = f"{price.params:,} params and {price.macs:,} macs"
        allowed = self.budget.allows(price)
        if timed and self.predicted is not None:
            ms = self.predicted(genotype, self.num_classes)
            costs = f"{price.params:,} params, {price.macs:,} macs and {ms:.3g} ms of predicted latency"
            allowed = allowed and self.budget.allows_latency(ms)
        elif allowed and timed:
            latency = measure_latency(genotype, self.img_size, self.num_classes, self.device)
            self._latencies[genotype.digest] = latency
            costs = f"{price.params:,} params, {price.macs:,} macs and {latency} of latency"
            allowed = self.budget.allows_latency(latency.ms)
        if not allowed:
            raise ESFormerError(
                f"no genotype of space {self.space.name} fits a budget of {self.budget}: the cheapest has {costs}"
            )
        return genotype
