"""Latencies of a table measured in a runtime: here beside a reference, or elsewhere by the runtime's own tool.

What else a machine does changes its clock rate by a fifth for seconds on end. So each network runs by turns with the
reference, and its latency is that of the reference times the median of the turns' ratios.
"""

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from esformer.export.comparing import About, images_for
from esformer.export.exported import Program
from esformer.export.folding import fold
from esformer.export.formats import FORMATS, Format
from esformer.files import FileError, atomic_output, read_text
from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer
from esformer.model.latency import runs
from esformer.model.latency_table import LatencyTable, LatencyTableError, Row
from esformer.model.probe import Probe

TURNS = 40
"""Runs of a network, each after one of the reference."""
REFERENCE_TURNS = 200
"""Runs of the reference, of which its latency is the median."""
SCRIPT = "measure.sh"


@dataclass(frozen=True)
class Runtime:
    """What runs a network.

    Args:
        package: that it comes with.
        format: in which it takes networks, one of `FORMATS`; empty for PyTorch, which takes them as they are.
        own_clock: on one thread it computes in the thread that calls it, whose own time is then the latency.
        tool: the runtime's own, that measures a file.
        options: what it is told, for a shell.
        found: what this prints, with the latency in a group.
        ms: milliseconds of what is found.
    """

    package: str
    format: str = ""
    own_clock: bool = True
    tool: str = ""
    options: str = ""
    found: str = ""
    ms: Callable[[float], float] = float

    @property
    def kind(self) -> Format | None:
        """The format, if there is one."""
        return FORMATS[self.format] if self.format else None

    def describe(self) -> str:
        """Its name and version."""
        try:
            return f"{self.package} {version(self.package)}"
        except PackageNotFoundError:
            return self.package


RUNTIMES = {
    "onnxruntime": Runtime(
        "onnxruntime",
        "onnx",
        tool="onnxruntime_perf_test",
        options="-I -e cpu -m times -r 200 -x {threads} -y 1 {file}",
        found=r"P50 Latency: ([\d.e+-]+) s",
        ms=lambda seconds: 1e3 * seconds,
    ),
    "openvino": Runtime(
        "openvino",
        "openvino",
        own_clock=False,
        tool="benchmark_app",
        options="-m {file} -d CPU -hint none -api sync -nstreams 1 -nthreads {threads}"
        ' -infer_precision f32 -niter 200 -shape "[{shape}]"',
        found=r"Throughput: +([\d.]+) FPS",  # the latencies that it prints have two decimals
        ms=lambda images_per_second: 1e3 / images_per_second,
    ),
    "litert": Runtime(
        "ai-edge-litert",
        "litert",
        tool="benchmark_model",
        options="--graph={file} --num_threads={threads} --use_xnnpack=true",
        found=r"Inference \(avg\): ([\d.e+]+)",
        ms=lambda microseconds: microseconds / 1e3,
    ),
    "torch": Runtime("torch"),
}
"""What `--runtime` may be."""


def runtime_of(table: LatencyTable) -> Runtime | None:
    """The runtime that a table names, in whatever version; None if it is none of `RUNTIMES`."""
    package = table.facts.get("runtime", "").partition(" ")[0]
    return next((runtime for runtime in RUNTIMES.values() if runtime.package == package), None)


class Bench:
    """Where the networks of a table are measured beside its reference: a context, within which files come and go.

    Args:
        table: what is measured.
        runtime: in what.
        threads: of the CPU.
        device: of PyTorch; other runtimes run on the CPU.

    Raises:
        ExportError: the runtime is not installed.
    """

    def __init__(self, table: LatencyTable, runtime: Runtime, threads: int = 1, device: str = "cpu") -> None:
        self.table, self.runtime, self.threads, self.device = table, runtime, threads, torch.device(device)
        self._own = runtime.own_clock and threads == 1 and self.device.type == "cpu"
        self._threads = torch.get_num_threads()
        if runtime.kind is not None:
            runtime.kind.check_packages()
            runtime.kind.check_runtime()

    def __enter__(self) -> "Bench":
        torch.set_num_threads(self.threads)
        self._room = TemporaryDirectory()
        self._reference = self._open(self.table.rows[0], self._room.name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        torch.set_num_threads(self._threads)
        self._room.cleanup()

    @torch.inference_mode()
    def reference_ms(self) -> float:
        """Milliseconds of the reference by itself."""
        return statistics.median(islice(runs(*self._reference, self._own), REFERENCE_TURNS))

    @torch.inference_mode()
    def ratio(self, row: Row) -> float:
        """How many times as long as the reference the network of a row takes."""
        with TemporaryDirectory(dir=self._room.name) as room:
            turns = zip(runs(*self._reference, self._own), runs(*self._open(row, room), self._own), strict=False)
            return statistics.median(other / reference for reference, other in islice(turns, TURNS))

    def _open(self, row: Row, room: str) -> tuple[nn.Module, Tensor]:
        """The network as the runtime has it, and an image; a runtime may read its file as long as it lives."""
        kind = self.runtime.kind
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
            network = probe_of(row, self.table, folded=kind is not None)
            image = images_for(network, 1)
        if kind is None:
            return network.to(self.device), image.to(self.device)
        path = Path(room, f"network{kind.suffix}")
        kind.write(network, about(network), path)
        computes = kind.read(path)
        assert computes is not None
        return Program(computes), image


def probe_of(row: Row, table: LatencyTable, folded: bool = True) -> nn.Module:
    """What a row of a table measures: random weights, in evaluation mode.

    Args:
        row: of the table.
        table: says for which images and classes.
        folded: with norms and layer scales folded into the convolutions before them, as exports have them.
    """
    network: nn.Module
    if isinstance(row.what, Genotype):
        network = ESFormer(row.what, table.num_classes, img_size=table.img_size)
    else:
        network = Probe(row.what, row.times)
    return fold(network) if folded else network.eval()


def about(network: nn.Module) -> About:
    """What a file of such a network says of itself."""
    probe: Any = network
    return {"num_classes": 0, "in_chans": probe.in_chans, "img_size": list(probe.img_size), "data": {}}


def emit(table: LatencyTable, number: int, runtime: Runtime, folder: Path) -> Path:
    """Write a row's network as a file of the runtime; one that is there stays.

    Args:
        table: what is to be measured.
        number: of the row.
        runtime: which has a format of files.
        folder: where the file goes.
    """
    kind = runtime.kind
    assert kind is not None
    path = folder / f"{table.name(number)}{kind.suffix}"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            network = probe_of(table.rows[number], table)
        with atomic_output(path) as place:
            kind.write(network, about(network), place / path.name)
    return path


def script(table: LatencyTable, runtime: Runtime, threads: int) -> str:
    """A shell script that measures every file beside it with the runtime's own tool, and goes on after a kill.

    Args:
        table: whose files there are.
        runtime: which has a tool.
        threads: of the CPU.
    """
    kind = runtime.kind
    assert kind is not None
    options = runtime.options.format(threads=threads, file=f'"$1"{kind.suffix}', shape="$2")
    lines = [
        "#!/bin/sh",
        f"# Measures every file here with {runtime.tool}, or with TOOL=/path/to/it; what it prints goes to NAME.txt.",
        "# Killed, it goes on. Then, where this was made: python -m pipelines.latency --read FOLDER",
        'cd "$(dirname "$0")" || exit 1',
        "measure() {",
        '  [ -s "$1.txt" ] && return',
        f'  ${{TOOL:-{runtime.tool}}} {options} > "$1.part" 2>&1',
        '  if [ $? = 0 ]; then mv "$1.part" "$1.txt"; else echo "$1 was not measured: see $1.part" >&2; fi',
        "}",
    ]
    for number, row in enumerate(table.rows):
        layer = row.layer
        size = table.img_size if layer is None else layer.pixels
        lines.append(f"measure {table.name(number)} 1,{3 if layer is None else layer.chs},{size},{size}")
    return "\n".join(lines) + "\n"


def told(output: Path, runtime: Runtime) -> float:
    """Milliseconds in what the runtime's own tool printed.

    Args:
        output: the file that holds it.
        runtime: whose tool it was.

    Raises:
        LatencyTableError: it cannot be read, or holds none.
    """
    try:
        text = read_text(output, 10_000_000)
    except FileError as error:
        raise LatencyTableError(str(error)) from None
    found = re.findall(runtime.found, text)
    try:
        ms = runtime.ms(float(found[-1]))
    except (IndexError, ValueError, ZeroDivisionError):
        ms = 0.0
    if not 0 < ms < 1e9:
        wanted = re.sub(r"\\|\(\[.*?\]\+\)", "", runtime.found)
        raise LatencyTableError(f"{output}: holds no latency; the tool prints one in a line with {wanted.strip()!r}")
    return ms
