"""What a search makes of the settings of the budget."""

from configs.schema import Config, table_and_limit
from esformer.choices import size_of
from esformer.genotype import Genotype
from esformer.model.cost import Budget, Cost, cost, paper_macs


def price_of(config: Config, genotype: Genotype) -> Cost:
    """What a genotype costs with the images and classes of a configuration."""
    return cost(genotype, config.data.img_size, config.data.known_classes)


def budget(config: Config) -> Budget:
    """The budget of a configuration's search, in numbers."""
    b = config.budget
    macs = _auto(config) if isinstance(b.macs, str) else b.macs
    predicted = None if b.latency is None else table_and_limit(b.latency)[1]
    return Budget(
        params=None if b.params is None else int(b.params),
        macs=None if macs is None else int(macs),
        latency_ms=predicted if b.latency_ms is None else b.latency_ms,
    )


def explain_auto(config: Config) -> str:
    """What `budget.macs=auto` is for the images of a configuration, and where that comes from."""
    size, classes = config.size, config.data.num_classes
    return (
        f"{_auto(config):,} at {config.data.img_size} pixels and"
        f" {'1000 classes until they are counted' if classes is None else f'{classes} classes'};"
        f" the paper's {size_of(size).macs / 1e9:g} G of {size} at 224 and 1000, scaled as {size_of(size).reference}"
    )


def _auto(config: Config) -> int:
    return paper_macs(config.size, config.data.img_size, config.data.known_classes)
