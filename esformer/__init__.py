"""ESFormer: training-free architecture search for small hybrid Transformers, and their training.

Names are imported when they are first used, so that `import esformer` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esformer import proxies as proxies
    from esformer.benchmarks.gene_space import GeneSpace as GeneSpace
    from esformer.benchmarks.spaces import open_space as open_space
    from esformer.benchmarks.spaces import register_space as register_space
    from esformer.checkpoint import load as load
    from esformer.data.base import register_data_source as register_data_source
    from esformer.genotype import Genotype as Genotype
    from esformer.model.cost import Budget as Budget
    from esformer.model.cost import Cost as Cost
    from esformer.model.cost import cost as cost
    from esformer.model.esformer import ESFormer as ESFormer
    from esformer.proxies import register_proxy as register_proxy
    from esformer.proxies import score as score
    from esformer.search.schedule import Schedule as Schedule
    from esformer.search.stage import search as search
    from esformer.space import SearchSpace as SearchSpace

_WHERE = {
    "Budget": "esformer.model.cost",
    "Cost": "esformer.model.cost",
    "ESFormer": "esformer.model.esformer",
    "GeneSpace": "esformer.benchmarks.gene_space",
    "Genotype": "esformer.genotype",
    "Schedule": "esformer.search.schedule",
    "SearchSpace": "esformer.space",
    "cost": "esformer.model.cost",
    "load": "esformer.checkpoint",
    "open_space": "esformer.benchmarks.spaces",
    "register_data_source": "esformer.data.base",
    "register_proxy": "esformer.proxies",
    "register_space": "esformer.benchmarks.spaces",
    "score": "esformer.proxies",
}

__all__ = [*_WHERE, "proxies", "search"]


def __getattr__(name: str) -> Any:
    if name in ("proxies", "search"):  # packages; that of the search can be called
        return import_module(f"esformer.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'esformer' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
