"""Files that Weights & Biases keeps, and which of them a run, or an export, was made from."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger, WandbLogger

from configs.schema import ConfigError, WandbConfig
from esformer.checkpoint.artifacts import WANDB, reason_of
from esformer.errors import ESFormerError
from esformer.files import FileError
from pipelines.runtime.run_folder import RunFolder
from pipelines.runtime.tracking import Tracker, known_id, logged_in, settings

if TYPE_CHECKING:
    from wandb import Run

log = getLogger("esformer")


def send_checkpoints(made: Sequence[Logger], checkpoints: Mapping[str, Path]) -> None:
    """Send checkpoints to W&B as versions of one artifact of the run.

    Args:
        made: the loggers.
        checkpoints: files by their alias, such as `best` and `last`; those that are not there are left out.
    """
    for logger in (one for one in made if isinstance(one, WandbLogger)):
        for alias, file in checkpoints.items():
            if file.exists():
                name = f"checkpoint-{logger.version}"
                logger.experiment.log_artifact(file, name=name, type="model", aliases=[alias])


def use_artifact(made: Sequence[Logger], source: str | None) -> None:
    """Tell W&B from which artifact a run begins, so that their pages lead to each other; offline it cannot be told.

    Args:
        made: the loggers.
        source: a genotype or checkpoint: in the folder of another run, or a `wandb:` name; others are not W&B's.
    """
    if source is None or (name := artifact_of(source)) is None:
        return
    for logger in made:
        if isinstance(logger, Tracker) and not logger.experiment.offline:
            logger.attempt(partial(_use, name=name))


def artifact_of(source: str) -> str | None:
    """The name under which W&B has a file, if it has it; None where it was not made by a run.

    Args:
        source: as `use_artifact` takes it.
    """
    if source.startswith(WANDB):
        return source.removeprefix(WANDB)
    file = Path(source).absolute()
    for folder, name in ((file.parent, "genotype-{}:latest"), (file.parent.parent, f"checkpoint-{{}}:{file.stem}")):
        run = RunFolder(folder, "")
        with suppress(FileError):
            if file in (run.genotype, run.best, run.last) and (known := known_id(run)):
                return name.format(known)
    return None


def _use(run: "Run", name: str) -> None:
    try:
        run.use_artifact(name)
    except Exception as error:  # it was never sent, or is in another project
        log.info("W&B cannot be told that this run begins from %s (%s)", name, reason_of(error))


def check_login(project: str) -> None:
    """Refuse at once what could not be sent in the end; asks no server.

    Args:
        project: of W&B.

    Raises:
        ConfigError: no project can be called that, or nobody is logged in.
    """
    WandbConfig(project=project)
    if not logged_in():
        raise ConfigError("sending to Weights & Biases needs a login; type `wandb login`")


def send_export(project: str, name: str, source: str, files: Sequence[Path], about: Mapping[str, Any]) -> str:
    """Send an export as an artifact, in a run of its own that begins from the artifact of its checkpoint.

    Args:
        project: of W&B.
        name: of the artifact; what was sent under it before stays as an earlier version.
        source: the checkpoint, as `use_artifact` takes it.
        files: files and folders.
        about: what is known of them.

    Returns:
        The address of the run.

    Raises:
        ESFormerError: the server cannot be reached, or did not take it.
    """
    import wandb

    artifact = wandb.Artifact(name, type="model", metadata=dict(about))
    for path in files:
        artifact.add_dir(str(path), name=path.name) if path.is_dir() else artifact.add_file(str(path))
    how: dict[str, Any] = dict(project=project, job_type="export", name=name, config=dict(about), mode="online")
    try:
        with TemporaryDirectory() as folder, wandb.init(dir=folder, settings=settings(), **how) as run:
            if known := artifact_of(source):
                _use(run, known)
            run.log_artifact(artifact)
            return str(run.url)
    except Exception as error:
        raise ESFormerError(
            f"{files[0]} is written, and could not be sent to Weights & Biases: {reason_of(error)}"
        ) from None
