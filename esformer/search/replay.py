"""A finished search, from its journal alone."""

import os
from collections.abc import Sequence
from typing import Any

from esformer.choices import choices_of
from esformer.model.cost import Budget
from esformer.model.latency_fit import LatencyModel
from esformer.search.callback import SearchResult
from esformer.search.journal import JournalError, read_header
from esformer.search.schedule import Schedule
from esformer.search.stage import SearchStage
from esformer.space import SearchSpace


def replay(path: str | os.PathLike[str], callbacks: Sequence[Any] = ()) -> SearchResult:
    """The result of a finished search, from its journal alone: nothing is scored, and the file is not changed.

    Args:
        path: the journal's file.
        callbacks: SearchCallbacks, called at its start and end.

    Raises:
        JournalError: it is no journal, the search was not finished, or another version of the search wrote it.
    """
    settings = read_header(path)
    try:
        for name, (least, most) in {"cost_img_size": (32, 4096), "num_classes": (1, 10**6), "seed": (0, 2**32)}.items():
            if type(settings[name]) is not int or not least <= settings[name] <= most:
                raise ValueError(f"{name} is {str(settings[name])[:60]}")
        space = SearchSpace(choices_of(settings["space"]))
        budget, schedule = Budget(**settings["budget"]), Schedule(**settings["schedule"])
        known = {name: settings[name] for name in ("seed", "img_size", "draws", "cost_img_size", "num_classes")}
        known |= {"latency": LatencyModel(**settings["latency"])} if "latency" in settings else {}
        stage = SearchStage(space, budget, schedule, callbacks=callbacks, checkpoint=path, batch_size=1, **known)
        stage.batch, stage.batch_facts = None, settings.get("batch")  # the images themselves are not needed
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise JournalError(f"{path}: line 1 does not say what search this is ({error})") from None
    return stage.replay()
