"""What went wrong in a way that the user can mend, and what did not go wrong but stopped."""

from esformer.text import printable

STOPPED = 75
"""Exit code (EX_TEMPFAIL) of a process that a signal stopped in good order; the same command goes on."""

USER_ERROR = 2
"""Exit code of what the user can mend."""


class ESFormerError(ValueError):
    """A sentence that says what is wrong, where, and what would be right; pipelines print it without a traceback."""

    def __init__(self, message: str) -> None:
        if "Original Traceback" in message:  # a DataLoader's worker hands an error on with its traceback in the message
            message = message.rstrip().splitlines()[-1].partition(": ")[2]
        super().__init__("\n".join(map(printable, message.split("\n"))))  # it may speak of what a file holds


class ProcessLostError(ESFormerError):
    """Another process that this one needs died, or hangs: one that loads images, or another rank."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its class where it says nothing.

    Args:
        error: of any library.

    >>> first_line(ValueError("no such axis\\n(and a page of details)")), first_line(KeyboardInterrupt())
    ('no such axis', 'KeyboardInterrupt')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had no memory left; whichever library noticed it."""
    known = ("out of memory", "_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in known))
    )
