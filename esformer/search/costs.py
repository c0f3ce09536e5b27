"""What the genotypes of a search cost, and which of them its budget allows; a latency is measured once."""

from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.model.cost import Budget, Cost, cost
from esformer.model.latency import Latency, measure_latency
from esformer.search.evolution import cheapest
from esformer.search.journal import Journal
from esformer.space import SearchSpace


class Costs:
    """The costs of genotypes: parameters and MACs in closed form, a latency as it was measured.

    Args:
        space: the genotypes there are.
        budget: what one may cost.
        img_size: pixels of the images for which MACs are counted and latencies measured.
        num_classes: classes of the classifier whose parameters are counted.
        device: on what latencies are measured.
        timed: whether latencies are measured.

    Raises:
        ESFormerError: no genotype fits the budget.
    """

    def __init__(
        self, space: SearchSpace, budget: Budget, img_size: int, num_classes: int, device: str, timed: bool
    ) -> None:
        self.budget, self.img_size, self.num_classes, self.device = budget, img_size, num_classes, device
        self._latencies: dict[str, Latency] = {}
        self._journal: Journal | None = None
        self.cheapest = self._cheapest(space, timed)
        """The cheapest genotype in terms of the budget, which allows it."""

    def __call__(self, genotype: Genotype) -> Cost:
        return cost(genotype, self.img_size, self.num_classes)

    def of(self, genotype: Genotype, name: str) -> float:
        """A single cost: params, macs or latency_ms."""
        return self.latency(genotype).ms if name == "latency_ms" else getattr(self(genotype), name)

    def allow(self, genotype: Genotype) -> bool:
        """Whether the budget does."""
        if not self.budget.allows(self(genotype)):
            return False
        return self.budget.latency_ms is None or self.budget.allows_latency(self.latency(genotype).ms)

    def latency(self, genotype: Genotype) -> Latency:
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

    def _cheapest(self, space: SearchSpace, timed: bool) -> Genotype:
        limits = {name: limit for name in ("params", "macs") if (limit := getattr(self.budget, name)) is not None}

        def weigh(genotype: Genotype) -> float:
            price = self(genotype)
            return max((getattr(price, name) / limit for name, limit in limits.items()), default=float(price.macs))

        genotype = cheapest(space, weigh)
        price = self(genotype)
        costs = f"{price.params:,} params and {price.macs:,} macs"
        allowed = self.budget.allows(price)
        if allowed and timed:
            latency = measure_latency(genotype, self.img_size, self.num_classes, self.device)
            self._latencies[genotype.digest] = latency
            costs = f"{price.params:,} params, {price.macs:,} macs and {latency} of latency"
            allowed = self.budget.allows_latency(latency.ms)
        if not allowed:
            raise ESFormerError(
                f"no genotype of space {space.name} fits a budget of {self.budget}: the cheapest has {costs}"
            )
        return genotype
