"""The workspace and the report of a project: what is drawn is what is logged, and there is never a second one."""

import json
import re
import sys
from pathlib import Path

import pytest
import wandb
from wandb_server import Views, serving

from esformer.errors import ESFormerError
from pipelines import dashboard
from pipelines.runtime import workspace

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1")
NAMES = [name.replace("PROXY", "entropic_score") for name in re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)]
"""What docs/metrics.md names; another test compares it with what a run logs."""
AXES = {"search/evaluation", "trainer/global_step"}
ELSEWHERE = {"ablate"}
"""A table, which stands among the panels that W&B makes by itself."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A project without workspaces and reports; gives those that it keeps."""
    views = Views()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.chdir(tmp_path)
    with serving(views) as (address, _):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        wandb.teardown()
        yield views.kept
    wandb.teardown()


def test_every_metric_that_is_logged_is_drawn_and_no_other():
    drawn = [names for lines in workspace.LINES.values() for names in lines.values()]
    pictures = [name for names in workspace.PICTURES.values() for name in names]
    for name in {*NAMES} - AXES - ELSEWHERE - {*pictures}:
        assert any(re.fullmatch(names, name) for names in drawn), name
    for names in drawn:
        assert any(re.fullmatch(names, name) for name in NAMES), names
    assert {*pictures} <= {*NAMES} and {*workspace.STEPS.values()} <= {*NAMES}
    for column in workspace.COLUMNS:
        kind, _, name = column.removesuffix(".value").partition(":")
        assert column.endswith(".value") == (kind == "config")  # as W&B's table of runs has them
        assert name in (NAMES if kind == "summary" else ("size", "params", "macs")), column


def test_a_second_call_brings_it_up_to_date(server, capsys, monkeypatch):
    addresses = dashboard.main(["--project", "digits"])
    assert capsys.readouterr().out == f"{addresses}\n"
    made, sent = addresses.split("\n")
    assert made.endswith("/me/digits?nw=esformer") and sent.endswith("/me/digits/reports/ESFormer--id-1")
    monkeypatch.setattr(workspace, "PAPER", {"S0": 1, "S1": 2, "S2": 3})
    assert dashboard.main(["--project", "digits"]) == addresses
    assert len(server) == 2
    server["id-1"]["description"] = "somebody's own"
    assert dashboard.main(["--project", "digits"]) != addresses and len(server) == 3
    for view in server.values():
        assert view["displayName"] == "ESFormer" and "12.5 M | 1.4 G | 3 |" in view["spec"]


def test_what_would_be_sent_can_be_seen(monkeypatch, capsys):
    monkeypatch.setattr(wandb, "Api", None)
    shown = json.loads(dashboard.main(["--show"]))
    assert json.loads(capsys.readouterr().out) == shown
    sections = shown["workspace"]["section"]["panelBankConfig"]["sections"]
    names = ["Networks", "Search", "Training", "Speed", "Ablation"]
    assert [section["name"] for section in sections] == names
    blocks = shown["report"]["blocks"]
    assert [block["children"][0]["text"] for block in blocks if block["type"] == "heading"] == names
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert [grid["hideRunSets"] for grid in grids] == [False, True, True, True, True]
    assert [*grids[0]["runSets"][0]["runFeed"]["columnPinned"]] == ["run:displayName", *workspace.COLUMNS]


def test_a_report_that_cannot_be_made_leaves_the_workspace(server, monkeypatch):
    def refuse(*_):
        raise ValueError("no rights to write reports")

    monkeypatch.setattr(workspace, "_save_report", refuse)
    said = (
        r"the report of project digits cannot be made: no rights to write reports; its workspace is made: http.*/digits"
    )
    with pytest.raises(ESFormerError, match=said):
        dashboard.main(["--project", "digits"])
    assert [view["displayName"] for view in server.values()] == ["ESFormer"]


def test_what_cannot_be(server, monkeypatch, tmp_path):
    with pytest.raises(ESFormerError, match=r"project other cannot be arranged: Project `me/other` not found"):
        dashboard.main(["--project", "other"])
    with pytest.raises(ESFormerError, match="project is 'a/b'; it must be letters"):
        dashboard.main(["--project", "a/b"])
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    with pytest.raises(ESFormerError, match="cannot be arranged: No API key configured. Use `wandb login`"):
        dashboard.main(["--project", "digits"])
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ESFormerError, match=r"install what a dashboard needs: pip install 'esformer\[dashboard\]'"):
        dashboard.main(["--project", "digits"])
    assert not server
