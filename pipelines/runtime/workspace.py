"""The workspace of a project in Weights & Biases: what is drawn beside what, and the columns of runs."""

import os
from importlib import import_module
from typing import Any

from configs.schema import WandbConfig
from esformer.checkpoint.artifacts import reason_of
from esformer.choices import SIZES, size_of
from esformer.errors import ESFormerError

NAME = "ESFormer"
PLACE = "nw-esformer-v"
"""Under which W&B keeps the workspace: always the same, so that a project never has two."""
PAPER = {"S0": 75.5, "S1": 78.8, "S2": 80.4}
"""Top-1 on ImageNet-1k, percent (Table 3)."""
PICTURES = {
    "Search": ["search/trajectory", "search/genotype", "search/front", "search/finalists"],
    "Ablation": ["ablate/picture"],
}
LINES = {
    "Search": {
        "the best by its proxies, and the population's median": r"search/[^/]+/(best|median)",
        "phase": "search/phase",
        "parameters, and what the budget allows": "search/(params|budget_params)",
        "MACs, and what the budget allows": "search/(macs|budget_macs)",
        "latency, and what the budget allows": "search/(latency_ms|budget_latency_ms)",
        "evaluations a second": "search/evaluations_per_second",
    },
    "Training": {
        "top-1: raw and averaged weights": "val/(top1|ema_top1)",
        "top-5: raw and averaged weights": "val/(top5|ema_top5)",
        "loss: training steps, epochs, validation": "(train/loss|train/loss_epoch|val/loss)",
        "learning rate": "lr",
        "norm of the gradient": "train/grad_norm",
        "epoch": "epoch",
    },
    "Speed": {
        "images a second": "train/images_per_second",
        "share of the time in which it waits for images": "train/waiting",
        "seconds a step": "train/step_seconds",
        "hours left": "train/hours_left",
    },
}
"""What is drawn, as regular expressions of whole names; all names are explained in docs/metrics.md."""
STEPS = {"Search": "search/evaluation"}
"""Over what; the others over the steps of the training."""
COLUMNS = ("config:size", "config:params", "config:macs", "summary:val/top1", "summary:val/ema_top1", "summary:epoch")


def workspace(project: str, entity: str = "") -> Any:
    """The workspace of a project, as `wandb-workspaces` describes it.

    Args:
        project: of W&B.
        entity: to whom it belongs.

    Raises:
        ESFormerError: the package is missing.
    """
    try:
        panels = import_module("wandb_workspaces.reports.v2")
    except ImportError:
        raise ESFormerError(
            "wandb_workspaces cannot be imported; install what a dashboard needs: pip install 'esformer[dashboard]'"
        ) from None
    ws = import_module("wandb_workspaces.workspaces")
    averaged = panels.SummaryMetric("val/ema_top1")
    drawn = {
        "Networks": [
            panels.MarkdownPanel(markdown=_table()),
            panels.ScatterPlot(title="top-1 against MACs", x=panels.Config("macs"), y=averaged),
            panels.ScatterPlot(title="top-1 against parameters", x=panels.Config("params"), y=averaged),
        ]
    }
    for section, lines in LINES.items():
        x = STEPS.get(section, "trainer/global_step")
        drawn[section] = [
            panels.LinePlot(title=title, x=x, metric_regex=f"^{names}$") for title, names in lines.items()
        ]
    for section, pictures in PICTURES.items():
        drawn.setdefault(section, []).append(panels.MediaBrowser(media_keys=pictures))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(section, shown, is_open=True) for section, shown in drawn.items()],
        runset_settings=ws.RunsetSettings(pinned_columns=[*COLUMNS]),
        auto_generate_panels=True,  # devices, and whatever else W&B records, come below
    )


def _table() -> str:
    """Table 3, to compare with."""
    rows = [
        f"| {name} | {size_of(name).params / 1e6:g} M | {size_of(name).macs / 1e9:.1f} G | {PAPER[name]} |"
        for name in SIZES
    ]
    head = "| ESFormer | parameters, at most | MACs | top-1 on ImageNet-1k in the paper, % |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def described(project: str) -> str:
    """The workspace as the JSON that W&B would store; asks nobody."""
    text: str = workspace(project)._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    return text


def save(project: str, entity: str | None) -> str:
    """Make the workspace, or bring the one that there is up to date.

    Args:
        project: of W&B.
        entity: to whom it belongs; None is whoever is logged in.

    Returns:
        The address.

    Raises:
        ESFormerError: nobody is logged in, there is no such project, or the server cannot be reached.
    """
    WandbConfig(project=project)  # refuses what no project can be called
    made = workspace(project)
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from wandb_workspaces.workspaces.internal import View

    try:
        made.entity = entity or wandb.Api().default_entity
        made._internal_name = PLACE
        try:
            made._internal_id = View.from_name(made.entity, project, PLACE).id
        except ValueError as error:
            if not str(error).startswith("Workspace"):
                raise
        made.save()
        address: str = made.url
    except (wandb.Error, OSError, ValueError) as error:
        raise ESFormerError(f"the workspace of project {project} cannot be saved: {reason_of(error)}") from None
    return address
