"""`pipelines.latency` as a user types it, on an imaginary device; and a search under the latency that it predicts."""

import json
import re

import pytest
from latencies import RUN, filled, layer_ms, network_ms

from configs.budget import budget
from configs.compose import compose
from configs.schema import ConfigError, table_and_limit
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.model.latency_fit import LatencyModel
from esformer.model.latency_table import LatencyTable
from pipelines import latency, search
from pipelines.runtime import predicting, tabulating

SMALL = ["--img-size", "32", "--num-classes", "10", "--networks", "4", "--runtime", "torch"]
SEARCH = ["--quick", "wandb.mode=disabled", "search.total=12", "search.start_length=3", "search.phase_length=3"]
SEARCH += ["search.seeds=1", "budget.macs=null", "search.start_proxy=parameters", "search.joint_proxy=parameters"]
REFERENCE = Genotype.shipped("efficientformerv2_s0")


class Imaginary:
    """A device on which everything takes as long as it should, and that may be unplugged."""

    dies_after = 10**9
    slower = 1.0

    def __init__(self, table, *_):
        self.table = table

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def reference_ms(self):
        return network_ms(REFERENCE, 32, 10)

    def ratio(self, row):
        Imaginary.dies_after -= 1
        if Imaginary.dies_after < 0:
            raise KeyboardInterrupt
        if isinstance(row.what, Genotype):
            return Imaginary.slower * network_ms(row.what, 32, 10) / self.reference_ms()
        return (RUN + row.times * layer_ms(row.what)) / self.reference_ms()


@pytest.fixture(autouse=True)
def _imaginary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (tabulating, predicting):
        monkeypatch.setattr(module, "Bench", Imaginary)
        monkeypatch.setattr(module, "device_name", lambda device: "imaginary")
    monkeypatch.setattr(Imaginary, "dies_after", 10**9)
    monkeypatch.setattr(Imaginary, "slower", 1.0)


def test_a_table_is_measured_once_and_goes_on_after_a_kill(tmp_path):
    whole = latency.main([*SMALL, "--out", "whole.csv"])
    assert whole["rows"] == len(LatencyTable.read("whole.csv").rows) and "4 held-out networks" in whole["error"]
    head = (tmp_path / "whole.csv").read_text()
    assert "# device: imaginary\n# threads: 1\n" in head and f"# error: {whole['error']}\n" in head
    Imaginary.dies_after = 40
    with pytest.raises(KeyboardInterrupt):
        latency.main(SMALL)
    assert len(LatencyTable.read("latency-S0-torch.csv").missing) == whole["rows"] - 41
    Imaginary.dies_after = whole["rows"] - 41  # no row is measured twice
    assert latency.main(SMALL)["error"] == whole["error"]
    assert LatencyTable.read("latency-S0-torch.csv") == LatencyTable.read("whole.csv")
    Imaginary.dies_after = 0
    assert latency.main(SMALL)["rows"] == whole["rows"]


def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, monkeypatch):
    latency.main(SMALL)
    for more, message in (
        (["--img-size", "64"], "latency-S0-torch.csv is another table: its img_size is 32, not 64; choose another"),
        (["--networks", "5"], "latency-S0-torch.csv is another table; choose another file"),
        (["--threads", "2"], "its threads is 1, not 2"),
        (["--device", "nowhere"], "--device is 'nowhere'; this machine has no such device for PyTorch"),
        (["--runtime", "openvino", "--device", "npu"], "--device is 'npu'; openvino is measured on this machine's cpu"),
        (["--out", "/proc/none/t.csv"], "/proc/none/t.csv cannot be written: .*; choose another file"),
        (["--emit", "files"], "--emit writes files for a runtime with a tool of its own; torch has none"),
        (["--read", "nowhere"], "nowhere/table.csv: cannot be read"),
        (["--read", "."], "its runtime is 'torch .*', which is none of --emit's"),
    ):
        (tmp_path / "table.csv").write_text((tmp_path / "latency-S0-torch.csv").read_text())
        with pytest.raises(ESFormerError, match=message) as caught:
            latency.main([*SMALL, *more])
        assert "\n" not in str(caught.value)
    (tmp_path / "latency-S0-torch.csv").write_text("file,ms\n")
    with pytest.raises(ESFormerError, match="latency-S0-torch.csv: is not a latency table of this version"):
        latency.main(SMALL)


def test_it_is_filled_on_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(tabulating, "emit", lambda table, number, runtime, folder: None)
    command = ["--img-size", "32", "--num-classes", "10", "--networks", "4", "--runtime", "openvino"]
    latency.main([*command, "--emit", "phone", "--device", "my phone"])
    assert (tmp_path / "phone" / "measure.sh").read_text().startswith("#!/bin/sh\n")
    with pytest.raises(ESFormerError, match="layers of the table have no ms yet"):
        latency.main(["--read", "phone"])
    table, device = LatencyTable.read("phone/table.csv"), Imaginary(None)
    for number, row in enumerate(table.rows):
        ms = device.reference_ms() * device.ratio(row)
        (tmp_path / "phone" / f"{table.name(number)}.txt").write_text(f"[ INFO ] Throughput:   {1e3 / ms:.6f} FPS\n")
    summary = latency.main(["--read", "phone"])
    assert summary["runtime"] == "openvino" and summary["device"] == "my phone" and "held-out" in summary["error"]
    predicted = LatencyModel.of(LatencyTable.read("phone/table.csv"))(REFERENCE)
    assert predicted == pytest.approx(network_ms(REFERENCE, 32, 10), rel=0.03)


def test_a_runtime_that_is_not_there_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ESFormerError, match=r"litert_torch and .* environment of its own.*'litert-torch"):
        latency.main(["--runtime", "litert", "--emit", "phone"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("phone.csv:20ms", ("phone.csv", 20.0)),
        ("a/b:c/phone.csv", ("a/b:c/phone.csv", None)),
        ("phone.csv:7.5", ("phone.csv", 7.5)),
        ("phone.csv", ("phone.csv", None)),
    ],
)
def test_a_budget_names_a_table_and_milliseconds(text, expected):
    assert table_and_limit(text) == expected
    assert budget(compose(overrides=[f"budget.latency={text}"])).latency_ms == expected[1]


@pytest.mark.parametrize("text", ["phone.csv:fast", "phone.csv:0ms", "phone.csv:", ":20ms", "phone.csv:-1ms"])
def test_a_budget_of_no_latency_is_refused(text):
    with pytest.raises(ConfigError, match=r"budget\.latency is '.*'; it must be a table and milliseconds above 0"):
        compose(overrides=[f"budget.latency={text}"])


def test_one_latency_is_enough():
    with pytest.raises(ConfigError, match=r"budget\.latency and latency_ms are both set"):
        compose(overrides=["budget.latency=t.csv:20ms", "budget.latency_ms=20"])


def table_for_digits(path="t.csv"):
    table = filled("S0", 32, 10, networks=4)
    table.facts["runtime"] = "torch 2"
    table.write(path)
    return LatencyModel.of(table)


@pytest.mark.nightly
def test_a_search_keeps_to_the_predicted_latency_and_measures_what_it_found(tmp_path, capsys):
    model = table_for_digits()
    limit = 0.6 * model(REFERENCE)
    summary = search.main([*SEARCH, f"budget.latency=t.csv:{limit:.4f}ms", "run.dir=r"])
    found = model(Genotype.load("r/genotype.yaml"))
    assert summary["predicted_latency_ms"] == found <= limit and summary["latency_table"] == "t.csv"
    assert summary["measured_latency_ms"] == pytest.approx(found, rel=0.05)
    lines = [json.loads(line) for line in (tmp_path / "r" / "journal.jsonl").read_text().splitlines()]
    assert all(0 < line["latency_ms"] <= limit for line in lines[1:]) and len(lines) == 13
    said = capsys.readouterr().out
    assert "predicted latency" in said and re.search(r"GMACs, \d+(\.\d+)? ms", said)
    again = search.main(["--replay", "r/journal.jsonl", "run.dir=again"])
    assert again["search_score"] == summary["search_score"]


@pytest.mark.nightly
def test_a_miss_is_said_and_so_is_what_was_not_measured(capsys):
    table_for_digits()
    Imaginary.slower = 1.5
    search.main([*SEARCH, "budget.latency=t.csv:100ms", "run.dir=r"])
    assert "% more than" in (said := " ".join(capsys.readouterr().out.split())) and "table's error is" in said
    table = LatencyTable.read("t.csv")
    table.facts["device"] = "my phone"
    table.write("t.csv")
    found = search.main([*SEARCH, "budget.latency=t.csv:100ms", "run.dir=other"])
    assert "measured_latency_ms" not in found and found["predicted_latency_ms"] > 0
    assert "was not measured: the table is of torch 2 on my phone" in " ".join(capsys.readouterr().out.split())


@pytest.mark.nightly
def test_a_changed_table_is_another_search(tmp_path):
    table_for_digits()
    command = [*SEARCH, "budget.latency=t.csv:100ms", "run.dir=r"]
    search.main(command)
    for name in ("genotype.yaml", "summary.json"):
        (tmp_path / "r" / name).unlink()
    journal = (tmp_path / "r" / "journal.jsonl").read_text()
    (tmp_path / "r" / "journal.jsonl").write_text("".join(journal.splitlines(True)[:9]))
    table = LatencyTable.read("t.csv")
    table.fill(7, 99.0)
    table.write("t.csv")
    with pytest.raises(ESFormerError, match="another search: latency was that of table .*, is that of table"):
        search.main(command)
    table_for_digits()
    search.main(command)
    timeless = [line.rpartition('"seconds"')[0] for line in journal.splitlines()]
    now = (tmp_path / "r" / "journal.jsonl").read_text().splitlines()
    assert [line.rpartition('"seconds"')[0] for line in now] == timeless


def test_a_family_of_predicted_latencies(tmp_path):
    model = table_for_digits()
    search.main([*SEARCH, "budget.latency=t.csv", "search.family=latency_ms", "run.dir=r", "search.seeds=2"])
    front = (tmp_path / "r" / "front.csv").read_text().splitlines()
    assert front[0].startswith("latency_ms,") and len(front) > 2
    assert model(Genotype.load("r/genotype.yaml")) == pytest.approx(float(front[-1].split(",")[0]))


def test_a_table_that_does_not_fit_the_search_is_refused(tmp_path):
    table_for_digits()
    for more, message in (
        (["budget.latency=none.csv:5ms"], "none.csv: cannot be read: No such file"),
        (["budget.latency=t.csv:5ms", "data.img_size=64"], "t.csv is of img_size 32, and this search of 64"),
        (["budget.latency=t.csv:5ms", "size=S1"], "t.csv is of space S0, and this search of S1"),
        (["budget.latency=t.csv:5ms", "search.extended=true"], "t.csv is of space S0, and this search of S0-extended"),
        (["budget.latency=t.csv:0.001ms"], "no genotype of space S0 fits .* ms of predicted latency"),
    ):
        with pytest.raises(ESFormerError, match=message):
            search.main([*SEARCH, "run.dir=r", *more])
    assert not (tmp_path / "r").exists()
