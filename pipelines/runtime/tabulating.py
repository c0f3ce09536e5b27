"""Tables of latencies: measured here, or emitted to be measured elsewhere, and read."""

import argparse
import logging
import time
from contextlib import nullcontext
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import torch

from esformer.choices import EXTENDED
from esformer.export.measuring import RUNTIMES, SCRIPT, Bench, Runtime, emit, runtime_of, script, told
from esformer.files import unwritable
from esformer.model.latency import device_name
from esformer.model.latency_fit import LatencyModel
from esformer.model.latency_table import LatencyTable, LatencyTableError
from esformer.throttle import Throttle
from pipelines.runtime.checkpoint import check_size
from pipelines.runtime.exporting import importable
from pipelines.runtime.signals import stop

log = logging.getLogger("esformer")

TABLE = "table.csv"
"""Of a folder that is measured elsewhere."""
EVERY = 15.0
"""Seconds between two lines of progress."""


def measure_table(options: argparse.Namespace) -> dict[str, Any]:
    """Measure on this machine what the table lacks; every row is in the file as soon as it is measured.

    Args:
        options: what `pipelines.latency.parse` gives.

    Raises:
        ESFormerError: the file is another table, cannot be written, or the runtime is not installed.
    """
    runtime, space = RUNTIMES[options.runtime], options.size + (EXTENDED if options.extended else "")
    path = options.out or Path(f"latency-{space}-{options.runtime}.csv")
    device = _device(options, runtime)
    table = _table(path, options, {"runtime": runtime.describe(), "device": device_name(device)})
    bench = Bench(table, runtime, options.threads, str(device))
    if missing := table.missing:
        _write(table, path)
        with stop.deferred(), importable(runtime.kind) if runtime.kind else nullcontext(), bench:
            _measure(table, missing, bench, path)
    return _judged(table, path)


def _measure(table: LatencyTable, missing: list[int], bench: Bench, path: Path) -> None:
    if missing[0] == 0:
        table.fill(missing.pop(0), bench.reference_ms())
    reference, began, throttle = table.rows[0].ms, time.monotonic(), Throttle(EVERY, at_once=False)
    assert reference is not None
    for done, number in enumerate(missing):
        if stop.look():
            return
        if done and throttle.due():
            left = timedelta(seconds=round((time.monotonic() - began) / done * (len(missing) - done)))
            log.info("%d of %d rows measured; %s left", len(table.rows) - len(missing) + done, len(table.rows), left)
        table.fill(number, reference * bench.ratio(table.rows[number]))
        table.write(path)


def emit_files(options: argparse.Namespace) -> dict[str, Any]:
    """Write the networks, their table and the script; what is there stays.

    Args:
        options: what `pipelines.latency.parse` gives.

    Raises:
        ESFormerError: the folder is of another table, cannot be written, or what writes the files is not installed.
    """
    runtime, folder = RUNTIMES[options.runtime], options.emit
    if runtime.kind is None:
        raise LatencyTableError("--emit writes files for a runtime with a tool of its own; torch has none")
    runtime.kind.check_packages()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LatencyTableError(f"{unwritable(folder, error)}; choose another folder") from None
    facts = {"runtime": runtime.package, "device": _named(options) or "not said"}
    table = _table(folder / TABLE, options, facts)
    _write(table, folder / TABLE)
    (folder / SCRIPT).write_text(script(table, runtime, options.threads))
    with importable(runtime.kind), stop.deferred():
        throttle = Throttle(EVERY, at_once=False)
        for number in range(len(table.rows)):
            if stop.look():
                break
            if throttle.due():
                log.info("%d of %d files", number, len(table.rows))
            emit(table, number, runtime, folder)
    return {"folder": str(folder), "files": len(table.rows), "then": f"sh {folder / SCRIPT}, and --read {folder}"}


def read_outputs(options: argparse.Namespace) -> dict[str, Any]:
    """Fill a folder's table from what the runtime's own tool printed.

    Args:
        options: what `pipelines.latency.parse` gives.

    Raises:
        ESFormerError: there is no table, or an output holds no latency; or layers have none yet, which says how many.
    """
    path = options.read / TABLE
    table = LatencyTable.read(path)
    runtime = runtime_of(table)
    if runtime is None or runtime.kind is None:
        raise LatencyTableError(f"{path}: its runtime is {table.facts.get('runtime')!r}, which is none of --emit's")
    for number in range(len(table.rows)):
        if (output := options.read / f"{table.name(number)}.txt").exists():
            table.fill(number, told(output, runtime))
    if name := _named(options):
        table.facts["device"] = name
    _write(table, path)
    return _judged(table, path)


def _judged(table: LatencyTable, path: Path) -> dict[str, Any]:
    """The summary of a table; its error is written at its head."""
    error = LatencyModel.of(table).error(table)
    table.facts["error"] = "not known: no networks are held out" if error is None else str(error)
    _write(table, path)
    left = len(table.missing)
    return {
        "table": str(path),
        "runtime": table.facts.get("runtime", ""),
        "device": table.facts.get("device", ""),
        "rows": len(table.rows) - left,
        **({"not_measured": left} if left else {}),
        "error": table.facts["error"],
    }


def _table(path: Path, options: argparse.Namespace, facts: dict[str, str]) -> LatencyTable:
    """The table that is there, which must be the same, or a new one."""
    check_size(options.img_size, options.img_size)
    space = options.size + (EXTENDED if options.extended else "")
    facts = {**facts, "threads": str(options.threads)}
    new = LatencyTable.drawn(space, options.img_size, options.num_classes, options.networks, facts)
    if not path.exists():
        new.facts["date"] = date.today().isoformat()
        return new
    old = LatencyTable.read(path)
    for what, ours, theirs in (
        ("space", space, old.space),
        ("img_size", options.img_size, old.img_size),
        ("num_classes", options.num_classes, old.num_classes),
        *((name, fact, old.facts.get(name)) for name, fact in facts.items()),
        ("rows", [(row.part, row.what) for row in new.rows], [(row.part, row.what) for row in old.rows]),
    ):
        if ours != theirs:
            known = "" if what == "rows" else f": its {what} is {theirs}, not {ours}"
            raise LatencyTableError(f"{path} is another table{known}; choose another file")
    return old


def _write(table: LatencyTable, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LatencyTableError(f"{unwritable(path, error)}; choose another file") from None
    table.write(path)


def _named(options: argparse.Namespace) -> str:
    """What a device that is elsewhere is called, as a line of a file can hold it."""
    return " ".join((options.device or "").split())


def _device(options: argparse.Namespace, runtime: Runtime) -> torch.device:
    name = options.device or "cpu"
    if runtime.kind is not None and name != "cpu":
        raise LatencyTableError(f"--device is {name!r}; {runtime.package} is measured on this machine's cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise LatencyTableError(f"--device is {name!r}; this machine has no such device for PyTorch") from None
    return device
