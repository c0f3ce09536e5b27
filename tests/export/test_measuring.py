"""Layers as networks of their own, measured here, or by a runtime's own tool whose words are read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esformer.export import measuring
from esformer.export.measuring import RUNTIMES, Bench, emit, probe_of, runtime_of, script, told
from esformer.genotype import Genotype
from esformer.model.cost import cost
from esformer.model.latency_table import LatencyTable, LatencyTableError, Row
from esformer.model.layers import layers
from esformer.model.probe import Probe

TOOLS = {  # what each tool prints, shortened
    "onnxruntime": "Session creation time cost: 0.0122 s\nAverage inference time cost total: 13.19 ms\n"
    "Min Latency: 0.0120851 s\nP50 Latency: 0.0125 s\nP90 Latency: 0.0148 s\n",
    "openvino": "[ INFO ] Latency:\n[ INFO ]    Median:        12.41 ms\n[ INFO ] Throughput:   80.00 FPS\n",
    "litert": "INFO: count=50 first=13001 curr=12480 min=12012 max=13500 avg=12500 std=12\n"
    "INFO: Inference timings in us: Init: 5685, First inference: 185, Warmup (avg): 144.3, Inference (avg): 12500\n",
}


def tiny():
    return LatencyTable.drawn("S0", 32, 10, 2, {"runtime": "onnxruntime", "device": "a phone"})


@pytest.mark.parametrize("extended", [False, True])
def test_the_layers_of_a_network_are_all_of_it(draw, extended):
    """Parameters, each of them once, and the shapes between them."""
    genotype = draw(extended=extended)
    probes = [Probe(layer) for layer in layers(genotype, 64, 10)]
    assert sum(p.numel() for probe in probes for p in probe.parameters()) == cost(genotype, 64, 10).params
    x = torch.zeros(2, 3, 64, 64)
    for probe in probes:
        assert x.shape[1:] == (probe.in_chans, *probe.img_size)
        x = probe.eval()(x)
    assert x.shape == (2, 10)


def test_probes_are_folded_as_exports_are_and_stand_in_a_row():
    table = tiny()
    number = next(n for n, row in enumerate(table.rows) if row.times > 1)
    probe = probe_of(table.rows[number], table)
    assert len(probe.layers) == 3 and not any("BatchNorm" in type(m).__name__ for m in probe.modules())
    assert any("BatchNorm" in type(m).__name__ for m in probe_of(table.rows[number], table, folded=False).modules())


def test_pytorch_is_measured_beside_the_reference():
    table, before = tiny(), torch.get_num_threads()
    with Bench(table, RUNTIMES["torch"]) as bench:
        assert 0.8 < bench.ratio(table.rows[0]) < 1.25
        assert 0 < bench.ratio(table.rows[3]) < 1
    assert torch.get_num_threads() == before


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_runtime_is_measured_beside_the_reference(name, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.setattr(measuring, "REFERENCE_TURNS", 20)
    table, runtime = tiny(), RUNTIMES[name]
    assert re.fullmatch(rf"{name} \d+\.\d+\S*", runtime.describe())
    with Bench(table, runtime) as bench:
        assert 0 < bench.reference_ms() < 100
        assert 0.7 < bench.ratio(Row("held-out", Genotype.shipped("efficientformerv2_s0"))) < 1.4
        assert 0 < bench.ratio(table.rows[3]) < 1


@pytest.mark.parametrize("name", TOOLS)
def test_what_a_tool_prints_is_read(name, tmp_path):
    file = tmp_path / "000-reference.txt"
    file.write_text(TOOLS[name])
    assert told(file, RUNTIMES[name]) == pytest.approx(12.5)
    file.write_text("Segmentation fault\n")
    with pytest.raises(LatencyTableError, match=r"000-reference.txt: holds no latency; the tool prints one in a line"):
        told(file, RUNTIMES[name])


def test_the_version_of_a_runtime_does_not_matter():
    assert runtime_of(LatencyTable("S0", 32, 10, {"runtime": "ai-edge-litert 1.4.0"})) is RUNTIMES["litert"]
    assert runtime_of(LatencyTable("S0", 32, 10)) is None


@pytest.mark.parametrize("name", TOOLS)
def test_the_script_measures_each_file_once(name, tmp_path):
    table, runtime = tiny(), RUNTIMES[name]
    table.rows = table.rows[:3]
    (tmp_path / "measure.sh").write_text(script(table, runtime, 2))
    tool = tmp_path / "tool"
    tool.write_text(f'#!/bin/sh\necho "$@" >> asked\ncat <<E\n{TOOLS[name]}E\n')
    tool.chmod(0o755)
    command = ["sh", str(tmp_path / "measure.sh")]
    for _ in range(2):
        subprocess.run(command, env={"TOOL": str(tool), "PATH": "/usr/bin:/bin"}, check=True, cwd="/")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 3 and all(table.name(n) + runtime.kind.suffix in line for n, line in enumerate(asked))
    assert all(re.search(r"threads[= ]2|-x 2", line) for line in asked)
    assert name != "openvino" or "-shape [1,3,32,32]" in asked[0]
    assert [told(tmp_path / f"{table.name(n)}.txt", runtime) for n in range(3)] == pytest.approx([12.5] * 3)
    tool.write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / f"{table.name(1)}.txt").unlink()
    done = subprocess.run(command, env={"TOOL": str(tool), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert f"{table.name(1)} was not measured: see {table.name(1)}.part" in done.stderr


@pytest.mark.nightly
def test_openvinos_own_tool_measures_what_was_emitted(tmp_path):
    pytest.importorskip("openvino")
    table, runtime = tiny(), RUNTIMES["openvino"]
    table.rows = table.rows[1:3]
    for number in range(2):
        written = emit(table, number, runtime, tmp_path)
        assert written.exists() and written.with_suffix(".bin").exists()
    (tmp_path / "measure.sh").write_text(script(table, runtime, 1))
    tool = Path(sys.executable).parent / "benchmark_app"
    subprocess.run(["sh", str(tmp_path / "measure.sh")], env={"TOOL": str(tool), "PATH": "/usr/bin:/bin"}, check=True)
    assert all(0 < told(tmp_path / f"{table.name(n)}.txt", runtime) < 100 for n in range(2))
