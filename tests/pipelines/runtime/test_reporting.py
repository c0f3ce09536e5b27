"""When a run writes its report, and that it never ends a run."""

import pytest
from test_report_page import read_page

from configs.compose import compose
from esformer.errors import STOPPED, ESFormerError
from pipelines import full
from pipelines.runtime import reporting
from pipelines.runtime.record import read_run
from pipelines.runtime.run_folder import RunFolder


@pytest.mark.nightly
def test_a_run_writes_its_report(tmp_path, monkeypatch):
    tiny = [
        "data.limit=32",
        "recipe.epochs=1",
        "recipe.batch_size=16",
        "trainer.accelerator=cpu",
        "wandb.mode=disabled",
    ]
    tiny += ["search.starts=1", "search.start_length=12", "search.phase_length=10", "search.total=22"]
    tiny += ["search.topology_proxy=parameters", "search.start_proxy=parameters", "search.size_proxy=macs"]
    written, write = [], reporting.write
    monkeypatch.setattr(
        reporting, "write", lambda *args, **how: (write(*args, **how), written.append(read_run(tmp_path / "run").state))
    )
    full.main(["--quick", *tiny, f"run.dir={tmp_path / 'run'}"])
    assert written == ["running", "finished"]  # after the search, and at the end
    page = read_page(tmp_path / "run/report.html")
    assert "state finished" in page.text and "on esformer" in page.text and "Linux" in page.text
    assert len(page.data["datasets"]["run 0 search"]["columns"]["evaluation"]) == 22
    assert page.data["datasets"]["run 0 training"]["columns"]["epoch"].count(1) >= 4


def test_a_report_that_fails_ends_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reporting, "write", lambda *args, **how: 1 / 0)
    reporting.LiveReport(tmp_path)(at_end=True)
    assert not caplog.text  # the folder of no run needs no report
    (tmp_path / "config.yaml").touch()
    live = reporting.LiveReport(tmp_path)
    live(at_end=True)
    assert "report.html could not be written: division by zero" in caplog.text


def test_a_report_is_not_written_too_often(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])

    def write(*args, timed):
        assert not timed  # while it is at work
        written.append(now[0])
        now[0] += 2

    monkeypatch.setattr(reporting, "write", write)
    (tmp_path / "config.yaml").touch()
    live = reporting.LiveReport(tmp_path)
    while now[0] < 600:
        live()
        now[0] += 1
    assert written == [30, 232, 434]  # 2 seconds are 1 % of 200


@pytest.mark.parametrize("error", [SystemExit(STOPPED), ValueError("no room"), ESFormerError("no images")])
def test_a_run_that_ends_early_says_so_on_its_page(tmp_path, error):
    config = compose("S0", True, [f"run.dir={tmp_path}"])
    with pytest.raises(type(error)), RunFolder.of("train", config, []).open(config):
        raise error
    page = read_page(tmp_path / "report.html").text
    assert "state stopped before its end; the same command goes on" in page and "budget" not in page
    assert ("error: no images" in page) == isinstance(error, ESFormerError)
