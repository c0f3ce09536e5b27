"""What is said to people as a run goes, on a terminal and in files."""

import logging
import sys
import warnings
from typing import TextIO

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.logging import RichHandler

log = logging.getLogger("esformer")


def is_main() -> bool:
    """Whether this process is the one that writes and prints: rank 0, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


class LogFormatter(logging.Formatter):
    """Marks warnings, so that people, and the report, find them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        mark = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{record.asctime} {mark}{record.message}"


class PlainHandler(logging.StreamHandler[TextIO]):
    """Writes to the `sys.stdout` of the moment, which a notebook or a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


def start_logging() -> None:
    """People on a terminal get Rich's lines, everything else plain ones."""
    log.setLevel(logging.INFO if is_main() else logging.ERROR)
    log.propagate = False
    if not any(isinstance(handler, (PlainHandler, RichHandler)) for handler in log.handlers):
        log.addHandler(RichHandler(show_path=False, show_level=False) if sys.stdout.isatty() else PlainHandler())
    for noisy in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for settled in (
        ".*LeafSpec.*is deprecated",  # Lightning's affair with newer torch
        ".*smaller than the logging interval",  # epochs have a line of their own
        "Checkpoint directory .* exists and is not empty",  # that is what resuming means
        "You're resuming from a checkpoint that ended before the epoch ended",  # our sampler goes on where it was
        "Found .* module.* in eval mode at the start of training",  # frozen stages
        "The `srun` command is available",  # one process on a login node is no mistake
    ):
        warnings.filterwarnings("ignore", message=settled)
