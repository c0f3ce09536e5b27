"""The record of a search: one JSON line an evaluation, as it happens. A killed search resumes from it."""

import json
import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, get_args

from esformer.errors import ESFormerError
from esformer.files import ContentError, FileError, open_file, parse_json, place_of, unwritable, whole_lines
from esformer.model.latency import Latency
from esformer.search.evolution import Origin

FORMAT = 2
"""The version of the file format, written as `"journal": 2`."""


BEYOND = 2**63
"""No number in a journal is as large."""


class JournalError(ESFormerError):
    """A journal that this search cannot go on with; nothing in it was changed."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One line of the journal.

    Args:
        evaluation: counted from 1.
        phase: name of the phase that asked for it.
        origin: sample, seed, mutation or crossover.
        scores: what each proxy of the phase gives it; higher is better.
        params: parameters of the genotype.
        macs: multiply-accumulates of one image.
        latency_ms: milliseconds of one image, if the budget limits them or a table predicts them.
        seconds: time the scoring took; 0 if the scores were known.
        elapsed: seconds of search until then, over all its sessions.
        genotype: as `Genotype.to_dict` gives it.
    """

    evaluation: int
    phase: str
    origin: str
    scores: dict[str, float]
    params: int
    macs: int
    latency_ms: float | None
    seconds: float
    elapsed: float
    genotype: dict[str, Any]


class Journal:
    """The evaluations of a search, each on disk as soon as it is appended; none stays in memory.

    Beside them the file keeps every latency that was measured, for a resumed search must decide as it did before.

    Args:
        header: what the search is: space, seed, budget, schedule. A journal of another search is refused.
        path: the file; by default a temporary one.
        phases: the names of the phases that evaluations may be of; None takes any.

    Raises:
        JournalError: the file is no journal, or one of another search or format.
    """

    def __init__(
        self,
        header: dict[str, Any],
        path: str | os.PathLike[str] | None = None,
        phases: Collection[str] | None = None,
    ) -> None:
        self.header, self.phases = {"journal": FORMAT, **header}, phases
        self.latencies: dict[str, Latency] = {}
        """Every latency measured, by the genotype's digest."""
        self._temporary = None if path else tempfile.NamedTemporaryFile(suffix=".jsonl")  # noqa: SIM115
        self.path = Path(path or self._temporary.name)  # type: ignore[union-attr]
        self._count = 0
        self._file: IO[bytes] | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._end = self._check() if self.path.exists() else 0
        except OSError as error:
            raise JournalError(f"{unwritable(self.path, error)}; choose another file") from None
        if self._end == 0:
            self._write(self.header)

    def append(self, evaluation: Evaluation) -> None:
        self._write({name: getattr(evaluation, name) for name in FIELDS})
        self._count += 1

    def append_latency(self, digest: str, latency: Latency) -> None:
        self._write({"latency_of": digest, **asdict(latency)})
        self.latencies[digest] = latency

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Evaluation]:
        """The evaluations, read from the file."""
        yield from read(self.path)  # and keep a temporary file meanwhile

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which may read the file."""
        return vars(self) | {"_file": None, "_temporary": None}

    def _write(self, line: dict[str, Any]) -> None:
        data = _dump(line)
        try:
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
                self._file.truncate(self._end)  # a last line that a kill tore off goes
            self.check_place()
            written = self._file.write(data)
            if written != len(data):  # a disk that fills up takes a part, and says at the rest that it is full
                self._file.write(data[written:])
        except OSError as error:
            raise JournalError(
                f"{self.path} cannot be written: {error.strerror}; what it holds is kept, and the same command goes on"
            ) from None

    def check_place(self) -> None:
        """See that the file still lies where it was opened; somebody may have renamed or removed its folder.

        Raises:
            JournalError: it does not; says where it lies now.
        """
        if self._file is None or (now := place_of(self._file, self.path)) == self.path:
            return
        if now is None:
            raise JournalError(f"{self.path} was removed while the search ran, and what was found with it")
        raise JournalError(
            f"{self.path} was moved away while the search ran; it is {now} now and holds all that was found: move the"
            " folder back, or name it where it is, and the same command goes on"
        )

    def _check(self) -> int:
        """See whose journal the file is, count its evaluations, and give the bytes that are whole lines."""
        try:
            return self._read()
        except FileError as error:
            raise JournalError(f"{error}; move the file away to start anew") from None

    def _read(self) -> int:
        with open_file(self.path) as file:
            first = file.readline(LONGEST)
        if not first.endswith(b"\n"):
            if not _dump(self.header).startswith(first):  # nor is it the beginning of ours
                raise JournalError(f"{self.path} is not a journal; choose another file")
            return 0
        header = _parse(first, f"{self.path}: line 1")
        if header != self.header:
            raise JournalError(f"{self.path} is the journal of another search: {self._differences(header)}")
        whole = len(first)
        for number, line, end in _lines(self.path):
            whole = end
            if isinstance(line, Evaluation):
                self._count += 1
                if self.phases is not None and line.phase not in self.phases:
                    raise JournalError(
                        f"{self.path}: line {number} is of phase {line.phase[:60]!r}, which this search has not;"
                        " move the file away to start anew"
                    )
                if line.evaluation != self._count:
                    raise JournalError(
                        f"{self.path}: line {number} is evaluation {line.evaluation}, but {self._count} comes next;"
                        " move the file away to start anew"
                    )
            else:
                self.latencies |= line
        return whole

    def _differences(self, header: dict[str, Any]) -> str:
        if (their := header.get("journal")) != FORMAT:
            return f"its format is {_short(their)}, and this version writes {FORMAT}; choose another folder"
        keys = [key for key in {**self.header, **header} if self.header.get(key) != header.get(key)]
        differences = "; ".join(
            f"{key} was {_short(header.get(key))}, is {_short(self.header.get(key))}" for key in keys
        )
        return f"{differences}; choose another folder"


FIELDS = tuple(field.name for field in fields(Evaluation))


def read(path: str | os.PathLike[str]) -> Iterator[Evaluation]:
    """The evaluations of a journal file, one after the other, without opening it for a search.

    Args:
        path: the journal's file.

    Raises:
        JournalError: there is no such file, or it is not a journal.
    """
    read_header(path)
    return (line for _, line, _ in _lines(path) if isinstance(line, Evaluation))


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What search a journal is of.

    Args:
        path: the journal's file.

    Raises:
        JournalError: there is no such file, it is not a journal, or one of another format.
    """
    try:
        with open_file(path) as file:
            header = _parse(file.readline(LONGEST), f"{path}: line 1")
    except FileError as error:
        raise JournalError(str(error)) from None
    if header.get("journal") != FORMAT:
        raise JournalError(f"{path} has format {_short(header.get('journal'))}, and this version reads {FORMAT}")
    return header


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, Evaluation | dict[str, Latency], int]]:
    """What whole lines below the header hold, evaluations or latencies by digest; their numbers, and where they end."""
    try:
        for number, line, end in whole_lines(path, LONGEST):
            if number > 1:
                yield number, _line(line, f"{path}: line {number}"), end
    except FileError as error:
        raise JournalError(f"{error}; move the file away to start anew") from None


LONGEST = 1 << 16
"""Bytes, more than any line has."""


def _dump(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ContentError:
        value = None
    if not isinstance(value, dict):
        raise JournalError(f"{where} is not a line of a journal; move the file away to start anew")
    return value


def _line(line: bytes, where: str) -> Evaluation | dict[str, Latency]:
    content = _parse(line, where)
    try:
        if "latency_of" in content:
            digest, latency = content.pop("latency_of"), Latency(**content)
            if type(digest) is str and _are(NUMBER, latency.ms, latency.error_ms) and _are(COUNT, latency.runs):
                return {digest: latency}
        elif _is_sound(evaluation := Evaluation(**content)):
            return evaluation
    except (TypeError, AttributeError):
        pass
    raise JournalError(f"{where} is not an evaluation; move the file away to start anew")


NUMBER, COUNT = (int, float), (int,)
ORIGINS = get_args(Origin)


def _is_sound(line: Evaluation) -> bool:
    """Whether everything is of its type; `parse_json` has seen that numbers are finite."""
    return (
        _are((str,), line.phase, line.origin)
        and _are(COUNT, line.evaluation, line.params, line.macs)
        and _are(NUMBER, line.seconds, line.elapsed, *line.scores.values())
        and (line.latency_ms is None or _are(NUMBER, line.latency_ms))
        and line.origin in ORIGINS
        and type(line.genotype) is dict
    )


def _are(types: tuple[type, ...], *values: Any) -> bool:
    return all(type(value) in types and (str in types or abs(value) < BEYOND) for value in values)


def _short(value: Any) -> str:
    if isinstance(value, dict) and "digest" in value:  # of a latency model, whose numbers say nothing to people
        return f"that of table {value['digest']}"
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
