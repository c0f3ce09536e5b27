"""Who is told of a run as it goes: Weights & Biases, or another of Lightning's loggers."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

import matplotlib.image
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger

from configs.schema import Config, ConfigError
from esformer.errors import STOPPED, first_line
from esformer.files import read_text, write_text
from esformer.version import code_version
from pipelines.runtime import tracking
from pipelines.runtime.logs import is_main
from pipelines.runtime.run_folder import RunFolder

log = logging.getLogger("esformer")


class TensorBoard(TensorBoardLogger):
    """Lightning's logger of TensorBoard, which gets pictures, and settings as text."""

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *_: Any, **__: Any) -> None:  # type: ignore[override]
        """A text for each of them."""
        for name, value in params.items():
            self.experiment.add_text(name, f"```yaml\n{yaml.safe_dump(value, sort_keys=False)}```")

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str]) -> None:
        """Send pictures, which are PNG files."""
        for image in images:
            self.experiment.add_image(key, matplotlib.image.imread(image), dataformats="HWC")


class MLflow(MLFlowLogger):
    """Lightning's logger of MLflow, which gets pictures, and whose failures end nothing: they are said in a line."""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self._attempt(lambda: MLFlowLogger.log_metrics(self, *args, **kwargs))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self._attempt(lambda: MLFlowLogger.log_hyperparams(self, *args, **kwargs))

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str]) -> None:
        """Send pictures."""
        for image in images:
            self._attempt(partial(self.experiment.log_artifact, self.run_id, image, key))

    def finalize(self, status: str = "success") -> None:
        self._attempt(lambda: MLFlowLogger.finalize(self, status))

    _failures = 0
    MOST = 3
    """Entries that may fail: each costs the time in which MLflow tries again."""

    def _attempt(self, what: Callable[[], Any]) -> None:
        if self._failures == self.MOST:
            return
        try:
            what()
        except Exception as error:  # of a server, of a file of a database
            self._failures += 1
            then = "this run goes on without MLflow" if self._failures == self.MOST else "everything else goes on"
            log.warning("MLflow could not take an entry (%s); %s", first_line(error)[:120], then)


def open_loggers(config: Config, run: RunFolder) -> list[Logger]:
    """Those that the configuration asks for; in processes that are not the first, and where W&B cannot start, none.

    Raises:
        ConfigError: a package is missing, or W&B shall be online and nobody is logged in.
    """
    if config.logger == "wandb":
        return [*tracking.loggers(config, run)]
    if config.logger in ("tensorboard", "mlflow") and find_spec(config.logger) is None:
        raise ConfigError(
            f"logger={config.logger} needs a package that is not here: pip install {config.logger}; or choose another"
        )
    if not is_main():
        return []
    made: Logger
    if config.logger == "tensorboard":
        made = TensorBoard(run.path, name="tensorboard", version="", default_hp_metric=False)
    elif config.logger == "mlflow":
        made = _mlflow(config, run)
    else:
        made = CSVLogger(run.path, name="csv")  # a file for each session
    made.log_hyperparams({**asdict(config), "command": run.command, "version": code_version()})
    return [made]


def _mlflow(config: Config, run: RunFolder) -> MLflow:
    """On the server of MLFLOW_TRACKING_URI, else in a file of the run's folder; one run for all sessions."""
    place, known = run.path.resolve(), run.path / "mlflow_id"
    made = MLflow(
        experiment_name=config.wandb.project,
        run_name=place.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place / 'mlflow.db'}",
        run_id=read_text(known) if known.exists() else None,
    )
    try:
        write_text(known, str(made.run_id))
    except Exception as error:
        raise ConfigError(f"logger=mlflow: MLflow cannot start: {str(error).partition(chr(10))[0][:200]}") from None
    return made


def finish(made: Sequence[Logger], exit_code: int) -> None:
    """End what they record: 0 is success, 75 a stop from which the same command goes on, all else a failure."""
    for logger in made:
        if isinstance(logger, tracking.Tracker):
            logger.finish(exit_code)
        elif exit_code != STOPPED:
            logger.finalize("failed" if exit_code else "success")
        else:
            logger.save()
