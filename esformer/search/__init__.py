"""Decoupled evolutionary search: operators, schedule, journal and the stage that runs them.

The package is also the public function: `from esformer import search; search(space, budget, schedule, seed=0)`.
"""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from esformer.search.stage import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
