"""Weights & Biases: one run for both stages, continued after every restart; when it fails, training goes on without."""

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from configs.schema import Config, ConfigError
from esformer.errors import STOPPED, first_line
from esformer.files import ContentError, read_text, write_text
from esformer.version import code_version
from pipelines.runtime.logs import is_main
from pipelines.runtime.run_folder import RunFolder
from pipelines.runtime.signals import stop

if TYPE_CHECKING:
    from wandb import Run, Settings

    from esformer.search.space import Architecture

log = logging.getLogger("esformer")

INIT_TIMEOUT = 20.0
"""Seconds to wait for W&B's server when a run starts."""
FINISH_TIMEOUT, HURRY = 60.0, 10.0
"""Seconds to wait at the end until everything is sent; and where a scheduler is about to kill the process."""
FLUSH = 1.0
"""Seconds after which W&B's file of the run is on the disk."""
REOPENINGS = 3
"""How often a run of W&B is opened again when its service dies."""


class Tracker(WandbLogger):
    """Lightning's logger of W&B, whose failures end nothing: they are said in a line.

    A run whose service died is opened again, as a further part of the same run; what else fails costs the entry that
    failed. The run's own `metrics.csv` and `steps.csv` do not pass here.

    Args:
        open_run: begins W&B's run, or goes on with it.
    """

    def __init__(self, open_run: "Callable[[], Run]") -> None:
        run = open_run()
        super().__init__(experiment=run, project=run.project, version=run.id, save_dir=run.dir)
        self._open, self._left = open_run, REOPENINGS
        self._told: set[str] = set()
        self._guard = _Guard(self)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, with methods that cannot fail."""
        return self._guard

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Add to the run's configuration."""
        self.attempt(lambda run: run.config.update(dict(params), allow_val_change=True))

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """Send pictures."""
        self.attempt(lambda _: WandbLogger.log_image(self, *args, **kwargs))

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Send a table."""
        self.attempt(lambda _: WandbLogger.log_table(self, *args, **kwargs))

    def attempt(self, what: "Callable[[Run], Any]") -> Any:
        """Do something with the run; None where that fails."""
        while self._experiment is not None:
            try:
                return what(self._experiment)  # type: ignore[arg-type]
            except ConnectionError as error:  # its service is gone
                self._reopen(error)
            except Exception as error:
                self._tell(f"W&B could not take an entry ({_reason(error)}); everything else goes on")
                break
        return None

    def finish(self, exit_code: int) -> None:
        """End the run; 75 is a stop from which it goes on (preempted). Waits for what is still to be sent, not long."""
        run, self._experiment = self._experiment, None
        if run is None:
            return
        done = threading.Event()

        def end() -> None:
            with suppress(Exception):
                if exit_code == STOPPED:
                    run.mark_preempting()
                run.finish(exit_code=exit_code)
                done.set()

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        ending.join(HURRY if exit_code == STOPPED else FINISH_TIMEOUT + HURRY)
        if not done.is_set():
            self._tell(
                f"W&B did not take everything; send it with: wandb sync --include-online {run.settings.sync_dir}"
            )

    def _reopen(self, error: Exception) -> None:
        _close_service()
        self._experiment = None
        while self._experiment is None and self._left > 0 and not stop.asked:  # SIGTERM ends W&B's process too
            self._left -= 1
            time.sleep(1.1)  # the folders of W&B are named after the second
            with suppress(Exception):
                self._experiment = self._open()
        then = (
            "it was started again" if self._experiment else "this run goes on without, its metrics are in metrics.csv"
        )
        self._tell(f"W&B stopped ({_reason(error)}); {then}")

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            log.warning("%s", line)


class _Guard:
    """Looks like W&B's run."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def finish(self, exit_code: int = 0) -> None:
        self._tracker.finish(exit_code)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tracker._experiment, name, None)
        if value is not None and not callable(value):
            return value
        return lambda *args, **kwargs: self._tracker.attempt(lambda run: getattr(run, name)(*args, **kwargs))


def loggers(config: Config, run: RunFolder) -> list[WandbLogger]:
    """W&B's logger unless another is asked for or it is disabled; offline where there is no login or no server.

    Raises:
        ConfigError: it shall be online, and nobody is logged in.
    """
    mode, pipeline = config.wandb.mode, run.command.split()[2].removeprefix("pipelines.")
    if mode == "disabled" or config.logger != "wandb" or not is_main():
        return []
    import wandb

    try:
        known = logged_in() and mode != "offline"
    except Exception as error:
        log.warning("W&B cannot start (%s); this session goes on without it", _reason(error))
        return []
    if mode in ("auto", "online"):
        if mode == "online" and not known:
            raise ConfigError("wandb.mode=online needs a login; type `wandb login`, or choose wandb.mode=offline")
        mode = "online" if known else "offline"
    facts: dict[str, Any] = {**asdict(config), "pipeline": pipeline, "command": run.command, "version": code_version()}
    if run.genotype.exists():
        from esformer.benchmarks.trained import read_architecture

        facts["genotype"] = read_architecture(run.genotype).to_dict()
    how: dict[str, Any] = dict(
        project=config.wandb.project,
        group=(config.wandb.group or run.path.resolve().name)[:128],
        job_type=pipeline,
        tags=[config.space.name or config.size, config.data.name],
        name=run.path.resolve().name[:128],
        id=_run_id(run),
        dir=run.path,
        resume="allow",
        config=facts,
    )

    def open_run() -> "Run":
        nonlocal mode
        if mode == "online":
            try:
                return _define(wandb.init(mode="online", settings=settings(), **how))
            except Exception as error:  # no network, no such project, a server in trouble
                log.warning("W&B cannot be reached (%s); this session is kept offline", _reason(error))
                _close_service()  # it would hold on to the run's id
        run_of_wandb = _define(wandb.init(mode="offline", settings=settings(), **how))
        log.info("W&B is offline; send the run, all its sessions in order, with: wandb sync %s", run.path / "wandb")
        return run_of_wandb

    try:
        return [Tracker(open_run)]
    except Exception as error:
        log.warning("W&B cannot start (%s); this session goes on without it", _reason(error))
        return []


def logged_in() -> bool:
    """Start W&B's client, silent; gives whether it has a key for its server, which is not asked."""
    import wandb

    os.environ.pop("WANDB_SERVICE", None)  # of whoever submitted the job, perhaps on another machine or long gone
    wandb.setup(wandb.Settings(silent=True))
    return bool(wandb.login(prompt=False, verify=False))


def settings() -> "Settings":
    """How long W&B's client waits, and that it prints nothing."""
    import wandb

    return wandb.Settings(
        silent=True,
        init_timeout=INIT_TIMEOUT,
        finish_timeout=FINISH_TIMEOUT,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=FLUSH,
    )


def log_genotype(made: Sequence[Logger], genotype: "Architecture", **costs: float) -> None:
    """Add the architecture to the run's configuration, where it is known only after the search.

    Args:
        made: the loggers.
        genotype: what was found or given.
        costs: its parameters and MACs.
    """
    for logger in made:
        logger.log_hyperparams({"genotype": genotype.to_dict(), **costs})


def _define(run: "Run") -> "Run":
    """The training is drawn over its steps, the search over its evaluations."""
    run.define_metric("trainer/global_step", hidden=True)
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    run.define_metric("search/evaluation", hidden=True)
    run.define_metric("search/*", step_metric="search/evaluation")
    return run


def _close_service() -> None:
    """End W&B's process, whatever state it is in; the next run starts another."""
    import wandb

    with suppress(Exception):
        wandb.teardown(exit_code=1)


def _reason(error: BaseException) -> str:
    line = first_line(error)
    return line if len(line) <= 120 else f"{line[:117]}..."


def _run_id(run: RunFolder) -> str:
    """The id under which W&B knows the run, the same after every restart."""
    if (known := known_id(run)) is None:
        known = secrets.token_hex(4)
        write_text(run.wandb_id, known)
    return known


def known_id(run: RunFolder) -> str | None:
    """The id that a run's folder names; None where it names none, or the file is damaged.

    Args:
        run: its folder.
    """
    try:
        known = read_text(run.wandb_id) if run.wandb_id.is_file() else ""
    except ContentError:
        return None
    return known if re.fullmatch("[0-9a-f]{8}", known) else None
