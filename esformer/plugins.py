"""What other packages bring: they name modules as entry points, which are imported when somebody asks for more."""

import logging
from functools import cache
from importlib.metadata import entry_points

log = logging.getLogger("esformer")

PROXIES, DATA_SOURCES, SPACES = "esformer.proxies", "esformer.data_sources", "esformer.spaces"
"""Groups of entry points. What one of them names is imported, and registers what it holds."""


def is_taken(known: object | None, made: object) -> bool:
    """Whether a name that a class or a function wants is another's; the cell of a notebook may run twice.

    Args:
        known: what has the name, if anything has.
        made: what wants it.
    """
    names = ("__module__", "__qualname__")
    return known is not None and any(getattr(known, name, None) != getattr(made, name, None) for name in names)


@cache
def load(group: str) -> None:
    """Import everything that installed packages name in a group, once; what cannot be imported is said and left out."""
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        try:
            point.load()
        except Exception as error:  # somebody's package can raise anything, and the others work without it
            package = point.dist.name if point.dist else point.value
            log.warning("%s: %s of package %s cannot be imported: %s", group, point.value, package, error)
