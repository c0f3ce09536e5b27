"""Functions that worker processes can be given; as light as a search without networks can be."""

import os
import signal
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from esformer.errors import ESFormerError
from esformer.search.scorer import Measured


@dataclass(frozen=True)
class Hashed:
    """A score that is a hash, after a moment; stands in for `search.scorer.Scorer`."""

    seconds: float = 0.0
    device: str = field(default="cpu")

    def __call__(self, task):
        time.sleep(self.seconds)
        digests = [sha256(f"{name}/{task.genotype.digest}".encode()).hexdigest() for name in task.proxies]
        return Measured(tuple(int(digest[:12], 16) / 2**48 for digest in digests), self.seconds)


@dataclass(frozen=True)
class Dying(Hashed):
    """Kills its process at every fifth genotype, so often as marks are left in the folder."""

    folder: str = ""
    times: int = 1

    def __call__(self, task):
        marks = Path(self.folder) / task.genotype.digest
        if int(task.genotype.digest, 16) % 5 == 0:
            before = marks.read_text() if marks.exists() else ""
            if len(before) < self.times:
                marks.write_text(before + "x")
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(task)


@dataclass(frozen=True)
class Refusing(Hashed):
    def __call__(self, task):
        raise ESFormerError(f"{task.genotype.digest} cannot be scored")


@dataclass(frozen=True)
class Late:
    """The task itself; the first takes longest."""

    def __call__(self, task):
        time.sleep(0 if task else 0.5)
        return task
