"""One folder a run: what is in it, how a second start finds it, and why another configuration is refused."""

import fcntl
import hashlib
import json
import logging
import os
import re
import shlex
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

from callbacks.checkpoints import BEST, LAST, PREVIOUS
from configs.compose import differences, to_yaml
from configs.schema import Config, ConfigError
from esformer.errors import ESFormerError
from esformer.files import ContentError, FileError, parse_yaml, place_of, read_json, read_text, unwritable, write_text
from esformer.space import SearchSpace
from esformer.text import printable
from esformer.version import versions
from pipelines.runtime.console import show
from pipelines.runtime.logs import LogFormatter, is_main
from pipelines.runtime.processes import machine
from pipelines.runtime.record import COMMAND, MACHINE
from pipelines.runtime.reporting import LiveReport

log = logging.getLogger("esformer")


LOCK = ".lock"
PATIENCE = 10.0
"""Seconds to wait for a folder: after a signal, the process before may still be saving what it has."""


UNLIMITED = "budget.macs was None, is auto"
"""How a run of before there was `budget.macs=auto` differs from the same command's of today."""
SHOWN = 8
"""Differences between two configurations that a sentence names."""
SUFFIXES = (".csv", ".html", ".json", ".jsonl", ".md", ".png", ".txt", ".yaml")
"""Of files that a run leaves."""


class RunError(ConfigError):
    """A folder that this run cannot use; says what is in the way."""


class Folder:
    """A folder in which one process at a time works, and always on the same thing.

    Args:
        path: the folder.
        command: what a person types to start this work.
        option: with what a person chooses another folder.
    """

    def __init__(self, path: Path, command: str, option: str = "run.dir") -> None:
        self.path, self.command, self.option = path, command, option
        self.config = path / "config.yaml"
        self._lock: IO[str] | None = None

    def claim(self, title: str, settings: str) -> None:
        """Make the folder or find it again, and keep other processes out.

        Args:
            title: what kind of work it is.
            settings: what the results depend on, as YAML.

        Raises:
            RunError: it holds other work, or another process is at work in it.
        """
        self._refuse_place()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{unwritable(self.path, error)}; choose another {self.option}") from None
        self._lock = self._open_lock()
        os.register_at_fork(after_in_child=self._lock.close)  # a child that outlives this process would hold it
        try:
            self._wait_for_lock(self._lock)
            known = self.check(title, settings)
            self.agree(self.config, title, settings)
        except BaseException:
            self._lock.close()
            raise
        if known:
            log.info("going on in %s", self.path)

    def check(self, title: str, settings: str) -> bool:
        """Whether the folder holds this work already. Changes nothing.

        Raises:
            RunError: it holds other work, or what no run leaves.
        """
        self._refuse_place()
        try:
            entries = sorted(self.path.iterdir()) if self.path.exists() else []
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error.strerror}; choose another {self.option}") from None
        for entry in entries:
            if (entry.suffix in SUFFIXES or entry.name == "wandb_id") and not entry.is_file():
                raise RunError(f"{entry} is not a file, as a run leaves it; move it away")
            if entry.name == "checkpoints" and not entry.is_dir():
                raise RunError(f"{entry} is not a folder, as a run leaves it; move it away")
        others = [entry.name for entry in entries if not entry.name.startswith(".")]
        known = self.config.exists()
        if others and not known:
            raise RunError(f"{self.path} holds no run but other files ({others[0]}); choose another {self.option}")
        self._compare(self.config, f"# {title}\n{settings}")
        return known

    def _refuse_place(self) -> None:
        """Refuse a path that is no folder, and one that an earlier version took for another, where a run lies."""
        try:
            if self.path.exists() and not self.path.is_dir():
                raise RunError(f"{self.path} is a file; {self.option} must be a folder")
            if self.option == "run.dir" and not self.config.exists():
                for earlier in _read_earlier(str(self.path)):
                    if (earlier / self.config.name).exists():
                        raise RunError(
                            f"{self.path} is not there, but {earlier}, which an earlier version took it for, holds a"
                            f" run: move it to {self.path} to go on with it, or choose another {self.option}"
                        )
        except OSError as error:
            raise RunError(f"{unwritable(self.path, error)}; choose another {self.option}") from None

    def agree(self, file: Path, title: str, settings: str) -> None:
        """Keep settings in a file of the folder; refuse them if it says others already."""
        text = f"# {title}\n{settings}"
        self._compare(file, text)
        write_text(file, text)

    def _compare(self, file: Path, text: str) -> None:
        if not file.exists():
            return
        try:
            before = read_text(file)
            changed = differences(before, text)
        except ContentError as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise RunError(f"{file} is damaged: it {reason}; choose another {self.option}") from None
        first = before.partition("\n")[0]
        if first != text.partition("\n")[0]:
            changed.insert(0, f"it is a run of {first.removeprefix('# ')}")
        if changed:
            shown = [phrase if len(phrase) <= 300 else f"{phrase[:300]}..." for phrase in changed[:SHOWN]]
            shown += [f"and {len(changed) - SHOWN} other differences"] if len(changed) > SHOWN else []
            raise RunError(f"{self.path} holds another run: {'; '.join(shown)}; choose another {self.option}")

    def _open_lock(self) -> IO[str]:
        """The file that is locked; never one elsewhere that a link points to, and never a pipe."""
        file = self.path / LOCK
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(file, flags, mode=0o666)
        except OSError as error:
            raise RunError(f"{unwritable(file, error)}; choose another {self.option}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RunError(f"{file} is not a file, as a run leaves it; move it away")
        return os.fdopen(descriptor, "r+")

    def _wait_for_lock(self, lock: IO[str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"another process is at work in {self.path}; wait for it, or choose another {self.option}"
                    raise RunError(message) from None
                time.sleep(0.2)
            except OSError:
                return log.warning("%s is on a file system without locks; start only one process there", self.path)

    def check_place(self) -> None:
        """See that the folder still lies where it was claimed; somebody may have renamed or removed it.

        Raises:
            RunError: it does not; says where it lies now.
        """
        if self._lock is None or (now := place_of(self._lock, self.path / LOCK)) == self.path / LOCK:
            return
        if now is None:
            raise RunError(f"{self.path} was removed while this run was at work in it, and all that it held with it")
        raise RunError(
            f"{self.path} was moved away while this run was at work in it; it is {now.parent} now: move it back, or"
            f" name it where it is with {self.option}, and the same command goes on"
        )

    def log_to_file(self) -> None:
        """Write what is said to people into `log.txt` too."""
        if is_main():
            try:
                handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8", errors="backslashreplace")
            except OSError as error:
                raise RunError(f"{unwritable(self.path / 'log.txt', error)}") from None
            handler.setFormatter(LogFormatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            log.addHandler(handler)
            for line in (f"{COMMAND}{self.command}", f"{MACHINE}{versions()}, {machine()}"):
                self.note(line)

    def note(self, line: str, level: int = logging.INFO) -> None:
        """Write a line into `log.txt` alone."""
        facts = {"levelno": level, "levelname": logging.getLevelName(level)}
        for handler in (one for one in log.handlers if isinstance(one, logging.FileHandler)):
            handler.handle(logging.makeLogRecord(facts | {"msg": printable(line)}))

    def close(self) -> None:
        """Let another process have the folder."""
        for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
            handler.close()
            log.removeHandler(handler)
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class RunFolder(Folder):
    """The files of a run.

    Args:
        path: the folder.
        command: what a person types to start this run.
    """

    def __init__(self, path: Path, command: str) -> None:
        super().__init__(path, command)
        self.genotype = path / "genotype.yaml"
        self.journal = path / "journal.jsonl"
        self.checkpoints = path / "checkpoints"
        self.last, self.previous, self.best = (self.checkpoints / name for name in (LAST, PREVIOUS, BEST))
        self.compared = path / "compared.csv"
        self.summary = path / "summary.json"
        self.wandb_id = path / "wandb_id"
        self.report = LiveReport(path)

    def __exit__(self, *ended: Any) -> None:
        kind, error, _ = ended
        if isinstance(error, ESFormerError):
            self.note(str(error), logging.ERROR)
        super().__exit__(*ended)
        if kind is not None and is_main():  # so far as it came
            self.report(at_end=True)

    @classmethod
    def of(
        cls, pipeline: str, config: Config, argv: Sequence[str] | None = None, folder: Path | None = None
    ) -> "RunFolder":
        """The folder that a configuration has, whether it is there or not.

        Args:
            pipeline: the command's name.
            config: every setting.
            argv: the command's arguments, by default the process's own.
            folder: where it lies, if the command says so itself.
        """
        argv = sys.argv[1:] if argv is None else argv
        path = folder or Path(config.run.dir or _default(pipeline, config))
        return cls(path, shlex.join(["python", "-m", f"pipelines.{pipeline}", *argv]))

    @property
    def title(self) -> str:
        """What kind of work it is: the command without its arguments."""
        return " ".join(self.command.split()[:3])

    def as_begun(self, config: Config) -> Config:
        """The configuration of a run that may lie here already.

        One that began without a limit of MACs, before there was `budget.macs=auto`, goes on without.
        """
        with suppress(FileError):  # it is not there, or damaged, which `claim` says
            if differences(read_text(self.config), to_yaml(config)) == [UNLIMITED]:
                if self.title.endswith((".full", ".search")):
                    says = "%s began without a limit of MACs, and goes on so; budget.macs=auto needs another run.dir"
                    log.info(says, self.path)
                return replace(config, budget=replace(config.budget, macs=None))
        return config

    def open(self, config: Config) -> Self:
        """Make the folder or find it again, for this configuration, and write into its log.

        Raises:
            RunError: it holds a run of another configuration, or another process is at work in it.
        """
        if is_main():
            self.claim(self.title, to_yaml(config))
        self.log_to_file()
        return self

    def finish(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write `summary.json` and the report, and print the same for people."""
        if is_main():
            write_text(self.summary, json.dumps(summary, indent=1) + "\n")
            self.report(at_end=True)
            show(summary)
        return summary

    def finished(self) -> dict[str, Any] | None:
        """The summary of a run that is over, printed again; None while it is not."""
        summary = read_summary(self.summary)
        if summary is None:
            return None
        if is_main():
            log.info("%s is finished; a new run needs another run.dir", self.path)
            show(summary)
        return summary


def read_summary(file: Path) -> dict[str, Any] | None:
    """What a `summary.json` says; None where it is not there or damaged, which is as good as unfinished.

    Raises:
        FileError: it is no file, or cannot be read.
    """
    if not file.exists():
        return None
    try:
        summary = read_json(file)
    except ContentError as error:
        log.warning("%s; it is made anew", error)
        return None
    return summary if isinstance(summary, dict) else None


def _default(pipeline: str, config: Config) -> Path:
    """A folder of its own for every configuration, the same whenever it is started; for ablations one for each space.

    Not by `data.decoder`: a run of before that setting is found, and told from this one by a sentence. Nor by
    `budget.macs=auto`, so that a run of before goes on; it is null that is told apart.
    """
    if pipeline == "ablate":
        other = "-".join(filter(None, (config.space.name, config.space.dataset)))
        return Path("runs") / f"ablate-{other or SearchSpace.for_size(config.size, config.search.extended).name}"
    phrases = {*differences("{}", to_yaml(config))} - {UNLIMITED}
    phrases |= {"budget.macs was auto, is None"} if config.budget.macs is None else set()
    identity = "\n".join(phrase for phrase in sorted(phrases) if not phrase.startswith("data.decoder "))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    what = config.space.name or f"{config.size}-{config.data.name}"
    return Path("runs") / f"{pipeline}-{what}-{digest}"


def _read_earlier(path: str) -> list[Path]:
    """The folders for which earlier versions took `run.dir`: as YAML reads it, and with a `~` that was not expanded."""
    home = os.path.expanduser("~")  # noqa: PTH111 (which Path refuses where nobody has a home)
    typed = f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path
    try:
        value = parse_yaml(typed)
    except ESFormerError:
        return []
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d[\d_]*[eE][+-]?\d+", value):  # a number there, not in PyYAML
        value = float(value)
    return [] if value is None or str(value) == path else [Path(str(value))]
