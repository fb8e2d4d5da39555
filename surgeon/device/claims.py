"""Constants that a small ONNX file makes large: onnxruntime computes them while it loads the file."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from surgeon.device import onnx_protobuf as pb
from surgeon.device.onnx_protobuf import Node, graph_span, parse
from surgeon.device.protobuf import BYTES, VARINT, Buffer, fields, integers, nested, text, varint
from surgeon.errors import InvalidArgument

_VALUES: Final = 1 << 27
"""The most values of a constant."""
_NUMBERS: Final = 64
"""The most numbers of a tensor that is taken for a shape."""

# Which input of an operator is the shape of its output, or the number of repetitions of its input
_SHAPES: Final[Mapping[str, int]] = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
_RANDOM: Final = ("RandomNormal", "RandomUniform")


def check_claims(model: Buffer) -> None:
    """Make sure that no constant has a shape, written in the file, of more values than may be allocated.

    Raises `InvalidArgument` if one is, or the bytes aren't an ONNX model.
    """
    graph = parse(model)
    shapes = dict(_shapes(model))
    for node in graph.nodes:
        shape = _shape(node, shapes)
        if node.op_type == "Tile" and node.inputs:
            shape = (*shape, *graph.initializers.get(node.inputs[0], ()))
        if math.prod(shape) > _VALUES:
            raise InvalidArgument(
                f"the constant that {node.op_type} makes has the shape {shape}; at most {_VALUES:,} values are made"
            )


def _shape(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if node.op_type in _RANDOM:
        given = node.attributes.get("shape", ())
        return tuple(size for size in given if isinstance(size, int)) if isinstance(given, tuple) else ()
    place = _SHAPES.get(node.op_type)
    return () if place is None or place >= len(node.inputs) else shapes.get(node.inputs[place], ())


def _shapes(model: Buffer) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The short lists of integers among the graph's constants, by name."""
    graph = graph_span(model)
    for tensor in nested(model, *graph, pb.GRAPH_INITIALIZER):
        yield _integers(model, *tensor)
    for node in nested(model, *graph, pb.GRAPH_NODE):
        names = [text(model, *name) for name in nested(model, *node, pb.NODE_OUTPUT)]
        for tensor in nested(model, *node, pb.NODE_ATTRIBUTE, pb.ATTRIBUTE_TENSOR):
            if len(names) == 1:
                yield names[0], _integers(model, *tensor)[1]


def _integers(model: Buffer, start: int, end: int) -> tuple[str, tuple[int, ...]]:
    name, kind = "", 0
    found: list[int] = []
    for number, form, low, high in fields(model, start, end):
        if number == pb.TENSOR_NAME and form == BYTES:
            name = text(model, low, high)
        elif number == pb.TENSOR_TYPE and form == VARINT:
            kind = varint(model, low)[0]
        elif number == pb.TENSOR_RAW and form == BYTES and high - low <= 8 * _NUMBERS:
            found += struct.unpack(f"<{(high - low) // 8}q", model[low : low + (high - low) // 8 * 8])
        elif number == pb.TENSOR_INT64 and high - low <= 10 * _NUMBERS:
            found += integers(model, form, low, high)
    return name, tuple(found) if kind == pb.TYPE_INT64 and len(found) <= _NUMBERS else ()
