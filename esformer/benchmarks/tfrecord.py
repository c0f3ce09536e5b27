"""NAS-Bench-101's official file: a TFRecord of JSON lists, each with a base64 protocol buffer. Needs no TensorFlow."""

import base64
import json
import struct
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.tables import Row

EPOCHS = 108
"""Of the trainings that count; the full file also has shorter ones."""
_OPS = {"conv3x3-bn-relu": "3", "conv1x1-bn-relu": "1", "maxpool3x3": "p"}


def read_tfrecord(table: Path) -> Iterator[Row]:
    """Each architecture with the mean final test accuracy of its trainings, in the order of their first ones.

    Raises:
        BenchmarkError: it cannot be read, or holds something else.
    """
    found: dict[str, tuple[str, int, list[float]]] = {}
    metrics = _metrics_class()
    number = 1
    try:
        for record in _records(table):
            key, epochs, matrix, ops, raw = json.loads(record)
            if epochs == EPOCHS:
                trained = metrics.FromString(base64.b64decode(raw))
                if key not in found:
                    found[key] = _notation(matrix, ops), trained.trainable_parameters, []
                found[key][2].append(trained.evaluation_data[-1].test_accuracy)
            number += 1
    except OSError as error:
        raise BenchmarkError(f"{table}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # JSON, base64, protocol buffers: each has its own kinds
        raise BenchmarkError(f"{table}: record {number} is not one of NAS-Bench-101: {error!r}") from error
    for notation, params, accuracies in found.values():
        yield notation, 100 * sum(accuracies) / len(accuracies), params


def _records(table: Path) -> Iterator[bytes]:
    """The records of a TFRecord: each a length of 8 bytes, its checksum of 4, the data, and its checksum of 4."""
    size = table.stat().st_size
    with table.open("rb") as file:
        while head := file.read(12):
            length = struct.unpack("<QI", head)[0]
            if length + 4 > size - file.tell():
                raise ValueError("the file ends within it")
            yield file.read(length)
            file.seek(4, 1)  # neither checksum is looked at


def _notation(matrix: str, ops: str) -> str:
    names = ops.split(",")
    n = len(names)
    if len(matrix) != n * n:
        raise ValueError(f"{n} operations and {len(matrix)} entries of the matrix")
    upper = "".join(matrix[row * n + column] for row, column in combinations(range(n), 2))
    return f"{n}:{upper}:{''.join(_OPS[name] for name in names[1:-1])}"


@cache
def _metrics_class() -> Any:
    """The message ModelMetrics, of which only what is read is declared: a parser passes over the rest."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="esformer/nasbench101.proto", package="esformer.nasbench101")
    file.message_type.add(name="EvaluationData").field.add(
        name="test_accuracy", number=5, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL
    )
    metrics = file.message_type.add(name="ModelMetrics")
    metrics.field.add(
        name="evaluation_data",
        number=1,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".esformer.nasbench101.EvaluationData",
    )
    metrics.field.add(name="trainable_parameters", number=2, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("esformer.nasbench101.ModelMetrics"))
