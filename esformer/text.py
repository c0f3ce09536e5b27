"""Text that comes from files, made fit for a terminal and for people to read."""


def printable(text: str, most: int | None = None) -> str:
    """The text on one line: what no one could see, or what would move a terminal's cursor, is shown as an escape code.

    Args:
        text: of anybody.
        most: the largest number of characters; what is left out is marked.
    """
    if most is not None and len(text) > most:
        text = f"{text[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
