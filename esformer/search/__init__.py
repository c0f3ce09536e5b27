"""Decoupled evolutionary search: operators, schedule, journal and the stage that runs them.

The package is also the public function, `esformer.search.stage.search`.

Examples:
    >>> from esformer import Budget, Schedule, SearchSpace, search
    >>> schedule = Schedule(unit="evaluations", starts=1, start_length=20, total=20, start_population=10)
    >>> found = search(SearchSpace.for_size("S0"), Budget(params=3_500_000), schedule, seed=0, img_size=32)
    >>> found.evaluations, found.cost.params <= 3_500_000
    (20, True)
"""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from esformer.search.stage import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
