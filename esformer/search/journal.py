"""The record of a search: one JSON line an evaluation, as it happens. A killed search resumes from it."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esformer.errors import ESFormerError

FORMAT = 1


class JournalError(ESFormerError):
    """A journal that this search cannot go on with; nothing in it was changed."""


@dataclass(frozen=True)
class Evaluation:
    """One line of the journal.

    Args:
        evaluation: counted from 1.
        phase: name of the phase that asked for it.
        origin: sample, seed, mutation or crossover.
        proxy: what was measured.
        score: its value; higher is better.
        params: parameters of the genotype.
        macs: multiply-accumulates of one image.
        seconds: time the scoring took; 0 if the score was known.
        elapsed: seconds of search until then, over all its sessions.
        genotype: as `Genotype.to_dict` gives it.
    """

    evaluation: int
    phase: str
    origin: str
    proxy: str
    score: float
    params: int
    macs: int
    seconds: float
    elapsed: float
    genotype: dict[str, Any]


class Journal:
    """A list of evaluations that is on disk as soon as it is appended to.

    Args:
        header: what the search is: space, seed, budget, schedule. A journal of another search is refused.
        path: the file; None keeps the journal in memory.

    Raises:
        JournalError: the file is no journal, or one of another search.
    """

    def __init__(self, header: dict[str, Any], path: str | os.PathLike[str] | None = None) -> None:
        self.header = {"journal": FORMAT, **header}
        self.path = None if path is None else Path(path)
        self.recorded: list[Evaluation] = []
        if self.path is not None and self.path.exists() and self.path.stat().st_size > 0:
            self.recorded = self._recover(self.path)
        elif self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(self.header)

    def append(self, evaluation: Evaluation) -> None:
        self.recorded.append(evaluation)
        self._write(asdict(evaluation))

    def __len__(self) -> int:
        return len(self.recorded)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self.recorded)

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _recover(self, path: Path) -> list[Evaluation]:
        """The evaluations in the file. A last line that a kill tore off is cut away."""
        whole, newline, torn = path.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n")
        if not newline:  # not even the header is whole
            if not json.dumps(self.header).encode().startswith(torn):
                raise JournalError(f"{path} is not a journal; choose another file")
            self._truncate(path, 0)
            self._write(self.header)
            return []
        header = _parse(lines[0], f"{path}: line 1")
        if header != self.header:
            keys = [key for key in {**self.header, **header} if self.header.get(key) != header.get(key)]
            differences = "; ".join(f"{key} was {header.get(key)}, is {self.header.get(key)}" for key in keys)
            raise JournalError(f"{path} is the journal of another search: {differences}; choose another folder")
        recorded = [_evaluation(line, f"{path}: line {n}") for n, line in enumerate(lines[1:], start=2)]
        if torn:
            self._truncate(path, len(whole) + 1)
        return recorded

    @staticmethod
    def _truncate(path: Path, size: int) -> None:
        with path.open("r+b") as file:
            file.truncate(size)


def read(path: str | os.PathLike[str]) -> list[Evaluation]:
    """The evaluations of a journal file, without opening it for a search.

    Raises:
        JournalError: there is no such file, or it is not a journal.
    """
    try:
        whole = Path(path).read_bytes().rpartition(b"\n")[0]
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}") from None
    return [_evaluation(line, f"{path}: line {n}") for n, line in enumerate(whole.split(b"\n")[1:], start=2)]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise JournalError(f"{where} is not a line of a journal; move the file away to start anew")
    return value


def _evaluation(line: bytes, where: str) -> Evaluation:
    try:
        evaluation = Evaluation(**_parse(line, where))
        if math.isfinite(evaluation.score) and math.isfinite(evaluation.elapsed):
            return evaluation
    except (TypeError, OverflowError):
        pass
    raise JournalError(f"{where} is not an evaluation; move the file away to start anew")
