"""Weights & Biases: one run for both stages, continued after every restart."""

import logging
import re
import secrets

from lightning.pytorch.loggers import WandbLogger

from esformer.atomic import write_text
from pipelines.config import Config, to_yaml
from pipelines.run import RunFolder, is_main

log = logging.getLogger("esformer")


def loggers(config: Config, run: RunFolder) -> list[WandbLogger]:
    """The loggers of a run: W&B unless it is disabled, offline where there is no login."""
    mode = config.wandb.mode
    if mode == "disabled" or not is_main():
        return []
    import wandb
    from omegaconf import OmegaConf

    if mode == "auto":
        mode = "online" if wandb.login(prompt=False) else "offline"
    experiment = wandb.init(
        project=config.wandb.project,
        name=run.path.name,
        id=_run_id(run),
        dir=run.path,
        mode=mode,  # type: ignore[arg-type]
        resume="allow",
        config=OmegaConf.to_container(OmegaConf.create(to_yaml(config))),  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True),
    )
    if mode == "offline":
        log.info("W&B is offline; send the run with: wandb sync %s", run.path / "wandb" / "offline-run-*")
    return [WandbLogger(experiment=experiment)]


def _run_id(run: RunFolder) -> str:
    """The id under which W&B knows the run, the same after every restart."""
    known = run.wandb_id.read_text(errors="replace") if run.wandb_id.exists() else ""
    if not re.fullmatch("[0-9a-f]{8}", known):
        known = secrets.token_hex(4)
        write_text(run.wandb_id, known)
    return known
