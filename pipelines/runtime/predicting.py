"""The latency of what a search found that keeps to a predicted one: predicted, and measured in the end."""

import logging
from typing import Any

import torch

from configs.schema import table_and_limit
from esformer.export.comparing import ExportError
from esformer.export.measuring import Bench, Runtime, runtime_of
from esformer.genotype import Genotype
from esformer.model.latency import device_name
from esformer.model.latency_fit import LatencyModel
from esformer.model.latency_table import LatencyTable, Row
from pipelines.runtime.logs import is_main
from pipelines.runtime.plan import Plan

log = logging.getLogger("esformer")


def predicted_and_measured(plan: Plan, genotype: Genotype) -> dict[str, Any]:
    """The predicted latency of what was found, and the measured one if this is the table's kind of device.

    Says so if they are farther apart than the table's networks are on average.

    Args:
        plan: of the search.
        genotype: what it found.
    """
    config, model = plan.config, None if plan.stage is None else plan.stage.latency
    if config.budget.latency is None or model is None or not is_main():
        return {}
    path, limit = table_and_limit(config.budget.latency)
    table, predicted = LatencyTable.read(path), model(genotype, config.data.known_classes)
    found: dict[str, Any] = {"predicted_latency_ms": predicted, "latency_table": path}
    try:
        measured = _measured(table, genotype)
    except ExportError as error:
        log.warning("its latency is predicted to be %.3g ms, and was not measured: %s", predicted, error)
        return found
    _compare(measured, predicted, limit, model, table)
    return found | {"measured_latency_ms": measured}


def _measured(table: LatencyTable, genotype: Genotype) -> float:
    """Milliseconds of a network, measured beside the table's reference as the table was.

    Raises:
        ExportError: this is another device, or the runtime is not installed.
    """
    told, device, runtime = table.facts.get("runtime", ""), table.facts.get("device", ""), runtime_of(table)
    places = [] if runtime is None else [place for place in _devices(runtime) if device_name(place) == device]
    threads, reference = table.facts.get("threads", ""), table.rows[0]
    if runtime is None or not places or not threads.isdecimal() or reference.ms is None or reference.layer:
        raise ExportError(f"the table is of {told or 'a runtime'} on {device or 'a device'} that this machine is not")
    log.info("measuring what was found in %s", runtime.describe())
    with Bench(table, runtime, int(threads), str(places[0])) as bench:
        return reference.ms * bench.ratio(Row("held-out", genotype))


def _devices(runtime: Runtime) -> list[torch.device]:
    """Those of this machine in which a runtime is measured."""
    accelerator = torch.accelerator.current_accelerator(check_available=True) if runtime.kind is None else None
    return [torch.device("cpu"), *([accelerator] if accelerator is not None else [])]


def _compare(measured: float, predicted: float, limit: float | None, model: LatencyModel, table: LatencyTable) -> None:
    """Say how far the measured latency is from the predicted one and the limit."""
    apart, error = measured / predicted - 1, model.error(table)
    more = "more" if apart > 0 else "less"
    said = f"its latency was measured: {measured:.3g} ms, {abs(apart):.1%} {more} than the {predicted:.3g} ms predicted"
    said += "" if error is None else f"; the table's error is {error.mean:.1%} on average"
    if limit is not None and measured > limit:
        said += f"; that misses the budget of {limit:g} ms by {measured / limit - 1:.1%}"
    log.log(logging.WARNING if error is not None and abs(apart) > error.mean else logging.INFO, "%s", said)
