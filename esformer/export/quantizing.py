"""Networks in int8: post-training static quantisation, by the tool of each runtime, and what is left in float.

Weights have a scale for each channel, activations one each, from their range on calibration images. Convolutions and
matrix products are quantised; what lies between them (sums, activation functions, softmax) is as each runtime has it.

Weights have 7 of the 8 bits: x86 processors without VNNI add products of 8 bits in 16, which overflows. With 8, a
digits-trained S0 lost 2.8 points of top-1 there in onnxruntime, and with 7 none; in OpenVINO its outputs were off by
6.3 %, then by 2.9 %. The packages are optional, so they are imported where they are used.

Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877; which parts to try in float is common practice.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from esformer.export.comparing import About, Computes, hushed
from esformer.export.metadata import metadata
from esformer.export.runtimes import INPUT, UNREPORTED, save_openvino
from esformer.files import write_bytes

log = logging.getLogger("esformer")

PARTS = ("attention", "first convolution", "classifier")
"""What may be left in float: attention's products and the talking heads beside its softmax, and the two ends."""
BOUND = 0.1
"""How far the outputs for calibration images may be from float32's, as a share, before a part is left in float. A
digits-trained S0 lost none of 360 images at 0.08, and 10 at 0.19 (onnxruntime)."""
NEARLY = 1.1
"""Where that cannot be had: what is as good as all parts in float, which then matter little."""
BATCH = 16
"""Calibration images that are shown at a time."""


class Op(NamedTuple):
    """An operation of a graph: its name, its kind, and the operations that make its inputs, without constants."""

    name: str
    kind: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Quantized:
    """What became of a network in int8.

    Args:
        kept: the parts that are left in float.
        error: how far the outputs for the calibration images are from float32's, as a share: norm of the difference.
    """

    kept: tuple[str, ...]
    error: float


class Source(NamedTuple):
    """A network in float32: of PyTorch, as it is exported, and the graph that it was exported to."""

    network: nn.Module
    graph: Path


Quantizer = Callable[[Source, Path, Tensor, Sequence[str], About], None]
"""Of a format: writes a graph in int8 to a path, calibrated on images, with parts in float and metadata."""


def quantize(
    write: Quantizer,
    read: Callable[[Path], Computes],
    source: Source,
    target: Path,
    images: Tensor,
    about: About,
) -> Quantized:
    """Write a graph in int8, with as few parts in float as keep the outputs within BOUND.

    Args:
        write: of a format.
        read: of the format.
        source: in float32.
        target: the file to write.
        images: for the calibration: N, C, H, W, prepared as the network takes them.
        about: as `Checkpoint.describe` gives it; the file says under `quantized` what was done.
    """
    with torch.no_grad():
        wanted = torch.cat([source.network(some) for some in images.split(BATCH)])
    last: list[tuple[str, ...]] = []

    def make(kept: tuple[str, ...]) -> None:
        done = {"weights": "int8", "activations": "int8", "float": list(kept), "calibration_images": len(images)}
        write(source, target, images, kept, {**about, "quantized": done})
        last[:] = [kept]

    @cache
    def error(kept: tuple[str, ...]) -> float:
        make(kept)
        computes = read(target)
        found = torch.cat([computes(some.contiguous()) for some in images.split(BATCH)])
        share = float((found - wanted).norm() / wanted.norm())
        log.info("int8, in float: %s; the outputs are off by %.1f %%", ", ".join(kept) or "nothing", 100 * share)
        return share

    kept = choose(error)
    if last != [kept]:
        make(kept)
    return Quantized(kept, error(kept))


def choose(error: Callable[[tuple[str, ...]], float]) -> tuple[str, ...]:
    """The fewest parts in float with which the error is within BOUND, or nearly what it is with all of them.

    Nothing is tried first; then all, and each alone; then the best of them together, one more at a time.

    Args:
        error: with these parts in float, in the order of PARTS.

    Examples:
        >>> choose(lambda kept: 0.3 - 0.25 * ("attention" in kept))
        ('attention',)
    """
    if error(()) <= BOUND:
        return ()
    enough = max(BOUND, NEARLY * error(PARTS))
    order = sorted(PARTS, key=lambda part: error((part,)))
    sets = (tuple(part for part in PARTS if part in order[:count]) for count in range(len(order)))
    return next((kept for kept in sets if error(kept) <= enough), PARTS)


def parts_of(ops: Sequence[Op]) -> dict[str, list[str]]:
    """The names of the operations that each of PARTS has; a network without attention has none of that.

    Args:
        ops: of a graph; kinds are `Convolution`, `MatMul`, `Softmax`, and any others.
    """
    kinds = {op.name: op.kind for op in ops}
    before = {op.name: op.inputs for op in ops}
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for op in ops:
        if op.kind == "MatMul":
            found["attention" if len(op.inputs) > 1 else "classifier"].append(op.name)
        elif op.kind == "Convolution" and not [name for name in op.inputs if name in kinds]:
            found["first convolution"].append(op.name)
        elif op.kind == "Convolution" and kinds.get(op.inputs[0]) == "Softmax":
            found["attention"].append(op.name)
        elif op.kind == "Softmax":
            near = [op.inputs[0], *before[op.inputs[0]]]  # with an addition between, of the bias
            found["attention"] += [name for name in near if kinds.get(name) == "Convolution"]
    return found


def _named(ops: Sequence[Op], kept: Sequence[str]) -> list[str]:
    return [name for part in kept for name in parts_of(ops)[part]]


ONNX_KINDS = {"Conv": "Convolution", "MatMul": "MatMul", "Gemm": "MatMul"}
"""What is quantised of ONNX's operators, by the names that `parts_of` knows."""


def quantize_onnx(source: Source, target: Path, images: Tensor, kept: Sequence[str], about: About) -> None:
    """By onnxruntime's own tool: pairs of QuantizeLinear and DequantizeLinear around what is quantised."""
    import onnx

    with hushed("root"), TemporaryDirectory(dir=target.parent) as room:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.batches = iter(images.split(BATCH))

            def get_next(self) -> dict[str, Any] | None:
                batch = next(self.batches, None)
                return None if batch is None else {INPUT: batch.numpy()}

        prepared, made = Path(room, "prepared.onnx"), Path(room, "int8.onnx")
        quant_pre_process(source.graph, prepared)
        quantize_static(
            prepared,
            made,
            Reader(),
            op_types_to_quantize=list(ONNX_KINDS),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},  # of the batches' ranges, in which one image counts less
            nodes_to_exclude=_named(list(_onnx_ops(onnx.load(prepared).graph)), kept),
        )
        model = onnx.load(made)
    del model.metadata_props[:]
    del model.graph.value_info[:]  # shapes of what lies between, which every runtime finds again
    onnx.helper.set_model_props(model, metadata(about))
    onnx.checker.check_model(model, full_check=True)
    write_bytes(target, model.SerializeToString())


def _onnx_ops(graph: Any) -> Iterator[Op]:
    made_by = {output: node.name for node in graph.node for output in node.output}
    made_by |= {value.name: value.name for value in graph.input}
    for node in graph.node:
        inputs = tuple(made_by[name] for name in node.input if name in made_by)
        yield Op(node.name, ONNX_KINDS.get(node.op_type, node.op_type), inputs)


def quantize_openvino(source: Source, target: Path, images: Tensor, kept: Sequence[str], about: About) -> None:
    """By NNCF, OpenVINO's own tool, which corrects biases too; its model type keeps attention's precision."""
    with hushed("nncf"), patch.dict(os.environ, UNREPORTED):
        import nncf
        import openvino

        model = openvino.Core().read_model(source.graph)
        names = _named(list(_openvino_ops(model)), kept)
        made = nncf.quantize(
            model,
            nncf.Dataset([image[None].numpy() for image in images]),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=names) if names else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    save_openvino(made, about, target)


def _openvino_ops(model: Any) -> Iterator[Op]:
    for op in model.get_ordered_ops():
        sources = [one.get_source_output().get_node() for one in op.inputs()]
        inputs = tuple(one.get_friendly_name() for one in sources if one.get_type_name() != "Constant")
        if op.get_type_name() != "Parameter":
            yield Op(op.get_friendly_name(), op.get_type_name(), inputs)
