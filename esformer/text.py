"""Text that comes from files, made fit for a terminal and for people to read."""

from typing import Any


def printable(text: str, most: int | None = None) -> str:
    """The text on one line: what no one could see, or what would move a terminal's cursor, is shown as an escape code.

    Args:
        text: of anybody.
        most: the largest number of characters; what is left out is marked.
    """
    if most is not None and len(text) > most:
        text = f"{text[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: Any) -> str:
    """A number as people read it; anything else as it is, nothing as a dash.

    Args:
        value: anything.

    >>> number(3419412), number(1234.56), number(0.123456), number(None)
    ('3,419,412', '1,234.6', '0.12346', '-')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e7 else f"{value:.5g}"
