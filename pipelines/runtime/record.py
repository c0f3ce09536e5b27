"""What a run's folder holds, read for people: while it is at work, after a kill, and when it is over."""

import fcntl
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callbacks.history import read_steps
from configs.compose import changes, compose, to_yaml
from esformer.benchmarks.trained import AnyArchitecture, read_architecture
from esformer.errors import ESFormerError
from esformer.files import ContentError, check_folder, parse_json, parse_yaml, read_text
from esformer.plots.training import Row
from esformer.report.charts import SearchCharts
from esformer.search.journal import Evaluation, read, read_header

COMMANDS = ("full", "search", "train")
"""The commands whose runs are reported."""
LARGEST = 20_000_000
"""Bytes of a log, or of an evaluation of many classes."""
LOG_LINES = 400
"""Of a log that are shown, the last ones."""
COMMAND, MACHINE, WARNINGS = "command: ", "machine: ", ("warning: ", "error: ")
"""How `log.txt` says what was typed, on what it ran, and what went wrong; after the time."""


@dataclass
class Record:
    """A run as its folder has it; what is not there yet is empty, and what cannot be read has a remark.

    Args:
        path: the folder.
        kind: full, search or train.
        config: every setting.
        changed: settings that are not as the size has them by default: key, default, value.
        summary: the result, once there is one.
        state: finished, running or stopped.
        genotype: what is or was trained, or was found.
        header: of the journal.
        search: its evaluations.
        last: the newest one.
        epochs: rows of `metrics.csv`.
        steps: rows of `steps.csv`.
        evaluated: what `pipelines.evaluate` left of the run's checkpoints, by folder.
        log: the last lines of `log.txt`.
        commands: what was typed, a session each.
        machines: on what it ran.
        warnings: lines of `log.txt` that are.
        remarks: what could not be read.
    """

    path: Path
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    changed: list[tuple[str, Any, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "stopped"
    genotype: AnyArchitecture | None = None
    header: dict[str, Any] = field(default_factory=dict)
    search: SearchCharts | None = None
    last: Evaluation | None = None
    epochs: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    evaluated: dict[Path, dict[str, Any]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def img_size(self) -> int:
        """Pixels of its images, or the paper's."""
        size = self.setting("data.img_size")
        return size if type(size) is int and size > 0 else 224

    @property
    def num_classes(self) -> int:
        """Classes of its images as far as they are known, or ImageNet's."""
        known = (self.setting("data.num_classes"), self.header.get("num_classes"))
        return next((classes for classes in known if type(classes) is int and classes > 0), 1000)

    @property
    def of_other_space(self) -> bool:
        """Whether it searches other networks than ESFormers."""
        return self.setting("space.name") is not None

    @property
    def space(self) -> str:
        """What it searches or trains a network of: the name of a size or of a table."""
        return str(self.header.get("space") or self.setting("space.name") or self.setting("size"))

    @property
    def go_on(self) -> str | None:
        """The command of its last session, for the folder where it lies now; None where the log does not say it."""
        try:
            words = shlex.split(self.commands[-1])
        except (IndexError, ValueError):  # there is none, or a damaged one
            return None
        return shlex.join([*(word for word in words if not word.startswith("run.dir=")), f"run.dir={self.path}"])

    def setting(self, key: str) -> Any:
        """The value of a setting; None where the run has none."""
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


def read_run(path: Path) -> Record:
    """Everything that a run's folder holds.

    Args:
        path: the folder.

    Raises:
        ESFormerError: there is none, or it is not one of a search or a training.
    """
    check_folder(path, "the folder of a run")
    if not (path / "config.yaml").is_file():
        raise ESFormerError(f"{path} is not the folder of a run: it holds no config.yaml")
    text = read_text(path / "config.yaml")
    title = text.partition("\n")[0]
    kind = title.rpartition(".")[2]
    if not title.startswith("# python -m pipelines.") or kind not in COMMANDS:
        raise ESFormerError(
            f"{path} is not a run of {', '.join(COMMANDS)}: {path / 'config.yaml'} begins with {title[:80]!r}"
        )
    run = Record(path, kind)
    _attempt(run, lambda file: _read_config(run, file, text), path / "config.yaml")
    readings: dict[str, Callable[[Path], object]] = {
        "summary.json": lambda file: run.summary.update(_mapping(file)),
        "genotype.yaml": lambda file: setattr(run, "genotype", read_architecture(file)),
        "architecture.yaml": lambda file: setattr(run, "genotype", read_architecture(file)),
        "journal.jsonl": lambda file: _read_journal(run, file),
        "metrics.csv": lambda file: run.epochs.extend(read_steps(file)),
        "steps.csv": lambda file: run.steps.extend(read_steps(file)),
        "log.txt": lambda file: _read_log(run, file),
    }
    for name, reading in readings.items():
        if (path / name).exists():
            _attempt(run, reading, path / name)
    for file in sorted(path.glob("checkpoints/*-evaluation/evaluation.json")):
        _attempt(run, lambda file: run.evaluated.update({file.parent: _mapping(file)}), file)
    run.state = "finished" if run.summary else "running" if is_locked(path / ".lock") else "stopped"
    return run


def _attempt(run: Record, reading: Callable[[Path], object], file: Path) -> None:
    """Read a file; what is wrong with it is a remark, and the report goes on without."""
    try:
        reading(file)
    except (ESFormerError, OSError) as error:
        run.remarks.append(str(error))


def _read_config(run: Record, file: Path, text: str) -> None:
    try:
        values = parse_yaml(text)
    except ContentError as error:
        raise ContentError(f"{file}: {error}") from None
    if not isinstance(values, dict):
        raise ContentError(f"{file}: holds no settings")
    run.config = values
    other = [f"space.name={run.setting('space.name')}"] if run.of_other_space else []
    run.changed = changes(to_yaml(compose(str(values.get("size")), overrides=other)), text)


def _read_journal(run: Record, file: Path) -> None:
    run.header = read_header(file)
    try:
        run.search = SearchCharts(run.header)
        for evaluation in read(file):  # what comes before a line that is none is kept
            run.search.append(evaluation)
            run.last = evaluation
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        run.remarks.append(f"{file} is not as this version writes it ({error})")


def _read_log(run: Record, file: Path) -> None:
    with file.open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - LARGEST))
        lines = log.read().decode(errors="replace").splitlines()
    run.log = lines[-LOG_LINES:]
    for line in lines:
        said = re.sub(r"^\S+ \S+ ", "", line)
        if said.startswith(COMMAND):
            run.commands.append(said.removeprefix(COMMAND))
        elif said.startswith(MACHINE):
            run.machines.append(said.removeprefix(MACHINE))
        elif said.startswith(WARNINGS):
            run.warnings.append(line)


def _mapping(file: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_text(file, LARGEST))
    except ContentError as error:
        raise ContentError(f"{file}: {error}") from None
    if not isinstance(value, dict):
        raise ContentError(f"{file}: holds no mapping")
    return value


def is_locked(lock: Path) -> bool:
    """Whether a process is at work in the folder. Looking takes a moment, for which starting processes wait."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # not there, or a file system without locks
    return False
