"""Networks in int8: post-training static quantisation, by the tool of each runtime, and what is left in float.

Weights have a scale for each channel, activations one each, from their range on calibration images. Convolutions and
matrix products are quantised; what lies between them (sums, activation functions, softmax) is as each runtime has it.
In ExecuTorch and LiteRT it is in float, and so are products of two activations: with int8 sums and scalings an
S0 trained on CIFAR-10 was off by 14 % in ExecuTorch, and by 3 % without.

In onnxruntime and OpenVINO weights have 7 of the 8 bits: x86 processors without VNNI add products of 8 bits in 16,
which overflows. With 8, a digits-trained S0 lost 2.8 points of top-1 there in onnxruntime, and with 7 none; in OpenVINO
its outputs were off by 6.3 %, then by 2.9 %. The packages are optional, so they are imported where they are used.

Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877; which parts to try in float is common practice.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from esformer.export.comparing import About, Computes, hushed, program_of
from esformer.export.metadata import metadata
from esformer.export.runtimes import INPUT, SIGNATURE, UNREPORTED, save_executorch, save_litert, save_openvino
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
    between: Callable[[], None] = lambda: None,
) -> Quantized:
    """Write a graph in int8, with as few parts in float as keep the outputs within BOUND.

    Args:
        write: of a format.
        read: of the format.
        source: in float32.
        target: the file to write.
        images: for the calibration: N, C, H, W, prepared as the network takes them.
        about: as `Checkpoint.describe` gives it; the file says under `quantized` what was done.
        between: called before each try, which may take minutes; what it raises ends them.
    """
    with torch.no_grad():
        wanted = torch.cat([source.network(some) for some in images.split(BATCH)])
    last: list[tuple[str, ...]] = []

    def make(kept: tuple[str, ...]) -> None:
        between()
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
            near = [name for one in op.inputs for name in (one, *before.get(one, ()))]  # an addition, of the bias
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


TORCH_KINDS = {"conv2d": "Convolution", "linear": "MatMul", "matmul": "MatMul", "softmax": "Softmax"}
"""Of PyTorch's operators, the same."""


def quantize_executorch(source: Source, target: Path, images: Tensor, kept: Sequence[str], about: About) -> None:
    """By torchao for XNNPACK, from PyTorch's graph; not sums, which torchao takes in too unless told."""
    with hushed("torchao"):
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        graph: Any = program_of(source.network).module()
        left = set(_named(list(_torch_ops(graph.graph)), kept))
        quantizer = xnnpack_quantizer.XNNPACKQuantizer()
        settings = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
        for operator in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            quantizer.set_operator_type(operator, settings)
        quantizer.set_filter_function(lambda node: node.name not in left)
        prepared = prepare_pt2e(graph, quantizer)
        with torch.no_grad():
            for some in images.split(BATCH):
                prepared(some)
        program = torch.export.export(convert_pt2e(prepared), (images[:1],))
    save_executorch(program, about, target)


def _torch_ops(graph: torch.fx.Graph) -> Iterator[Op]:
    for node in graph.nodes:
        if node.op == "call_function":
            kind = node.target.__name__.partition(".")[0]
            inputs = tuple(one.name for one in node.all_input_nodes if one.op != "get_attr")
            yield Op(node.name, TORCH_KINDS.get(kind, kind), inputs)


LITERT_KINDS = {
    "CONV_2D": "Convolution",
    "DEPTHWISE_CONV_2D": "Convolution",
    "FULLY_CONNECTED": "MatMul",
    "BATCH_MATMUL": "MatMul",
    "SOFTMAX": "Softmax",
    "DIV": "Softmax",
}
"""Of LiteRT's operators, the same. The converter takes most softmax apart, which ends with a division."""
LITERT_QUANTIZED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
BETWEEN = {"TRANSPOSE", "RESHAPE", "PAD", "REDUCE_MAX", "MAXIMUM", "SUB", "EXP", "SUM"}
"""Operators of LiteRT that are looked through: layouts, and what softmax is taken apart into before its division."""


def quantize_litert(source: Source, target: Path, images: Tensor, kept: Sequence[str], about: About) -> None:
    """By LiteRT's own tool; the input and the output stay in float, as what else is not quantised."""
    with hushed("absl", "root"):
        from ai_edge_quantizer import qtyping, quantizer, recipe_manager
        from ai_edge_quantizer.algorithm_manager import AlgorithmName

        recipe = recipe_manager.RecipeManager()
        for name in LITERT_QUANTIZED:
            recipe.add_static_config(".*", qtyping.TFLOperationName(name), activation_num_bits=8, weight_num_bits=8)
        for scope in _named(list(_litert_ops(source.graph)), kept):
            everything = qtyping.TFLOperationName.ALL_SUPPORTED
            recipe.add_quantization_config(f"^{re.escape(scope)}$", everything, algorithm_key=AlgorithmName.NO_QUANTIZE)
        tool = quantizer.Quantizer(str(source.graph), recipe.get_quantization_recipe())
        ranges = tool.calibrate({SIGNATURE: [{INPUT: image[None].numpy()} for image in images]})
        content = tool.quantize(ranges).quantized_model
    save_litert(content, about, target)


def _litert_ops(path: Path) -> Iterator[Op]:
    """By the scopes that the quantiser knows them by."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    model = tfl_flatbuffer_utils.read_model(str(path))
    graph = model.subgraphs[0]
    names = {code: name for name, code in vars(BuiltinOperator).items() if not name.startswith("_")}
    made_by: dict[int, tuple[str, ...]] = dict.fromkeys(graph.inputs, (INPUT,))
    for op in graph.operators:
        kind = names[model.operatorCodes[op.opcodeIndex].builtinCode]
        inputs = tuple(dict.fromkeys(name for index in op.inputs for name in made_by.get(index, ())))
        scope = tfl_flatbuffer_utils.get_op_scope(op, graph.tensors)
        made_by |= dict.fromkeys(op.outputs, inputs if kind in BETWEEN else (scope,))
        if kind not in BETWEEN:
            yield Op(scope, LITERT_KINDS.get(kind, kind), inputs)
