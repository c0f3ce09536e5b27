"""A project in Weights & Biases, arranged: a workspace and a report, what is drawn beside what, the columns of runs."""

import json
import os
from importlib import import_module
from typing import Any

from configs.schema import WandbConfig
from esformer.checkpoint.artifacts import reason_of
from esformer.choices import SIZES, size_of
from esformer.errors import ESFormerError

NAME = "ESFormer"
"""Of the workspace, and the title of the report."""
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
COLUMNS = ["config:size.value", "config:params.value", "config:macs.value"]
COLUMNS += ["summary:val/top1", "summary:val/ema_top1", "summary:epoch"]
"""Of the table of runs, as W&B writes them."""
MADE_BY = "made by python -m pipelines.dashboard"
"""Under the report's title; by both it is found again."""
ABOUT = """
What the runs of this project found and trained: networks against their cost, the course of searches and trainings, and
all runs with size, cost and accuracy. `val/ema_top1` is that of the averaged weights. Made by
`python -m pipelines.dashboard`, which brings it up to date, and what is written here by hand is lost then.
"""


def workspace(project: str, entity: str = "") -> Any:
    """The workspace of a project, as `wandb-workspaces` describes it.

    Args:
        project: of W&B.
        entity: to whom it belongs.

    Raises:
        ESFormerError: the package is missing.
    """
    ws = _package("workspaces")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(section, shown, is_open=True) for section, shown in _panels().items()],
        runset_settings=ws.RunsetSettings(pinned_columns=[*COLUMNS]),
        auto_generate_panels=True,  # devices, and whatever else W&B records, come below
    )


def report(project: str, entity: str = "") -> Any:
    """A report of a project: a page that can be sent to others, with the same panels and the runs below them.

    Args:
        project: of W&B.
        entity: to whom it belongs.

    Raises:
        ESFormerError: the package is missing.
    """
    wr = _package("reports.v2")
    blocks, columns = [wr.MarkdownBlock(ABOUT.strip())], ["run:displayName", *COLUMNS]
    for section, shown in _panels().items():
        runs = wr.Runset(entity, project, pinned_columns=columns, visible_columns=columns, lock_columns=True)
        grid = wr.PanelGrid(runsets=[runs], panels=shown, hide_run_sets=section != "Networks")
        blocks += [wr.H2(section), grid]
    return wr.Report(project, entity, NAME, MADE_BY, blocks, width="fluid")


def _package(name: str) -> Any:
    try:
        return import_module(f"wandb_workspaces.{name}")
    except ImportError:
        raise ESFormerError(
            "wandb_workspaces cannot be imported; install what a dashboard needs: pip install 'esformer[dashboard]'"
        ) from None


def _panels() -> dict[str, list[Any]]:
    """What is drawn, by section."""
    wr = _package("reports.v2")
    averaged = wr.SummaryMetric("val/ema_top1")
    drawn = {
        "Networks": [
            wr.MarkdownPanel(markdown=_table()),
            wr.ScatterPlot(title="top-1 against MACs", x=wr.Config("macs"), y=averaged),
            wr.ScatterPlot(title="top-1 against parameters", x=wr.Config("params"), y=averaged),
        ]
    }
    for section, lines in LINES.items():
        x = STEPS.get(section, "trainer/global_step")
        drawn[section] = [wr.LinePlot(title=title, x=x, metric_regex=f"^{names}$") for title, names in lines.items()]
    for section, pictures in PICTURES.items():
        drawn.setdefault(section, []).append(wr.MediaBrowser(media_keys=pictures))
    return drawn


def _table() -> str:
    """Table 3, to compare with."""
    rows = [
        f"| {name} | {size_of(name).params / 1e6:g} M | {size_of(name).macs / 1e9:.1f} G | {PAPER.get(name, '')} |"
        for name in SIZES
    ]
    head = "| ESFormer | parameters, at most | MACs | top-1 on ImageNet-1k in the paper, % |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def described(project: str) -> str:
    """The workspace and the report as the JSON that W&B would store; asks nobody.

    Args:
        project: of W&B.

    Raises:
        ESFormerError: no project can be called that, or the package is missing.
    """
    WandbConfig(project=project)
    both = {"workspace": workspace(project), "report": report(project)}
    how: dict[str, Any] = dict(mode="json", by_alias=True, exclude_none=True)
    return json.dumps({name: one._to_model().spec.model_dump(**how) for name, one in both.items()}, indent=1)


def save(project: str, entity: str | None) -> list[str]:
    """Make the workspace and the report, or bring those that there are up to date.

    Args:
        project: of W&B.
        entity: to whom it belongs; None is whoever is logged in.

    Returns:
        Their addresses.

    Raises:
        ESFormerError: nobody is logged in, there is no such project, or the server cannot be reached.
    """
    WandbConfig(project=project)  # refuses what no project can be called
    workspace(project)  # says what is missing before anybody is asked
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    made: list[str] = []
    try:
        api = wandb.Api()
        if not (owner := entity or api.default_entity):
            raise ESFormerError(f"W&B does not say whose project {project} is; say it with --entity")
        made.append(_save_workspace(workspace(project, owner)))
        made.append(_save_report(report(project, owner), api))
    except (wandb.Error, OSError, ValueError) as error:
        what = f"the report of project {project} cannot be made" if made else f"project {project} cannot be arranged"
        done = f"; its workspace is made: {made[0]}" if made else ""
        raise ESFormerError(f"{what}: {reason_of(error)}{done}") from None
    return made


def _save_workspace(made: Any) -> str:
    view = import_module("wandb_workspaces.workspaces.internal").View
    made._internal_name = PLACE
    try:
        made._internal_id = view.from_name(made.entity, made.project, PLACE).id
    except ValueError as error:
        if not str(error).startswith("Workspace"):  # there is no such project
            raise
    made.save()
    return str(made.url)


def _save_report(made: Any, api: Any) -> str:
    ours = (made.title, made.description)
    known = api.reports(f"{made.entity}/{made.project}")
    made.id = next((one.id for one in known if (one.display_name, one.description) == ours), "")
    made.save()
    return str(made.url)
