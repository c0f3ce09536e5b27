"""Rate limiting: something that is done at most once in so many seconds."""

import time


class Throttle:
    """Whether it is time again: for lines, pictures and looks that should not be too many.

    Args:
        every: seconds between two times.
        at_once: whether the first time is now, and not after as many seconds.
    """

    def __init__(self, every: float, at_once: bool = True) -> None:
        self.every = every
        self._next = time.monotonic() + (0 if at_once else every)

    def due(self) -> bool:
        """Whether it is time; if so, the next time is `every` seconds from now."""
        if (now := time.monotonic()) < self._next:
            return False
        self._next = now + self.every
        return True

    def wait(self, seconds: float | None = None) -> None:
        """Let the next time be so many seconds from now, or `every`."""
        self._next = time.monotonic() + (self.every if seconds is None else seconds)
