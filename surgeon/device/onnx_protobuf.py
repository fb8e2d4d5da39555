"""ONNX files as bytes: reads their graphs, and writes tiny ones, without the onnx package."""

from __future__ import annotations

import dataclasses
import functools
import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Union

from surgeon.device.protobuf import BYTES, VARINT, Buffer, field, fields, integers, nested, text, varint
from surgeon.errors import InvalidArgument
from surgeon.support.opening import Unfit, open_file

Attribute = Union[int, float, bytes, tuple[int, ...], tuple[float, ...]]

BLOCKED_DOMAIN: Final = "com.microsoft.nchwc"
"""The domain of operators in the NCHWc layout, in which channels are in blocks of the CPU's vector width."""

OPSET: Final = 20
"""The opset that files are written in by default, and in the oldest IR that has it, 9: onnxruntime reads both since
1.17."""

FEEDER: Final = "feed_"
"""How the name of an operator, or of its output, begins if it only prepares inputs."""

_LARGEST: Final = (2 << 30) - 1
"""The most bytes of a protobuf message."""

_FLOAT, _INTEGER_ATTRIBUTE = 1, 2

# Numbers of the fields of each message, from onnx.proto
MODEL_IR, MODEL_GRAPH, MODEL_OPSET = 1, 7, 8
OPSET_DOMAIN, OPSET_VERSION = 1, 2
GRAPH_NODE, GRAPH_NAME, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 2, 5, 11, 12
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_BYTES, ATTRIBUTE_TENSOR = 1, 2, 3, 4, 5
ATTRIBUTE_FLOATS, ATTRIBUTE_INTS, ATTRIBUTE_TYPE = 7, 8, 20
TENSOR_DIMS, TENSOR_TYPE, TENSOR_INT64, TENSOR_NAME, TENSOR_RAW = 1, 2, 7, 8, 9
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR, TENSOR_TYPE_ELEMENT, TENSOR_TYPE_SHAPE = 1, 1, 2
SHAPE_DIM, DIM_SIZE = 1, 1

TYPE_INT64: Final = 7
"""The type of a tensor of integers of 64 bits."""


_TEXTS = (NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP, NODE_DOMAIN)


@dataclasses.dataclass(frozen=True)
class Node:
    """An operator; `inputs` and `outputs` are names of values, "" for an omitted input."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = dataclasses.field(default_factory=dict)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute, `default` where it isn't given."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def is_blocked(self, op_type: str) -> bool:
        """Whether it is an operator of this kind in the NCHWc layout."""
        return (self.domain, self.op_type) == (BLOCKED_DOMAIN, op_type)


@dataclasses.dataclass(frozen=True)
class Graph:
    """The nodes in order, and the dimensions of initializers, inputs and outputs by name.

    A dimension that is not a number is None.
    """

    nodes: tuple[Node, ...]
    initializers: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, tuple[int | None, ...]]

    @functools.cached_property
    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read a value, in order, by its name."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    @property
    def blocked(self) -> bool:
        """Whether an operator other than a reorder runs in the NCHWc layout."""
        return any(node.domain == BLOCKED_DOMAIN and not node.op_type.startswith("Reorder") for node in self.nodes)


def read(path: str | os.PathLike[str]) -> Graph:
    """The graph of an ONNX file. Weights in other files are not looked for.

    Raises `InvalidArgument` if the file is missing, empty or not ONNX.
    """
    with mapped(path) as content:
        try:
            return parse(content)
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: {error}") from error


@contextmanager
def mapped(path: str | os.PathLike[str]) -> Iterator[mmap.mmap]:
    """The bytes of a file, mapped. Raises `InvalidArgument` if it is missing, empty or not a regular file."""
    try:
        file = open_file(path, _LARGEST)
    except Unfit as error:
        raise InvalidArgument(f"{path} can't be read as an ONNX model: {error}") from error
    with file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{path} can't be read as an ONNX model: {error}") from error
        with content:
            yield content


def parse(model: Buffer) -> Graph:
    """The graph of an ONNX model in memory.

    Raises `InvalidArgument` if the bytes aren't an ONNX model.

    >>> [node.op_type for node in parse(elementwise(["Neg", "Abs"], (1, 8))).nodes]
    ['Neg', 'Abs']
    """
    try:
        start, end = graph_span(model)
        nodes: list[Node] = []
        initializers: dict[str, tuple[int, ...]] = {}
        inputs: dict[str, tuple[int | None, ...]] = {}
        outputs: dict[str, tuple[int | None, ...]] = {}
        for number, _, low, high in fields(model, start, end):
            if number == GRAPH_NODE:
                nodes.append(read_node(model, low, high))
            elif number == GRAPH_INITIALIZER:
                name, dims = read_tensor(model, low, high)
                initializers[name] = dims
            elif number in (GRAPH_INPUT, GRAPH_OUTPUT):
                name, shape = read_value(model, low, high)
                (inputs if number == GRAPH_INPUT else outputs)[name] = shape
    except (IndexError, UnicodeDecodeError, struct.error) as error:
        raise InvalidArgument(f"not an ONNX model ({error})") from error
    return Graph(tuple(nodes), initializers, inputs, outputs)


def graph_span(model: Buffer) -> tuple[int, int]:
    """Where the graph begins and ends."""
    for number, kind, low, high in fields(model, 0, len(model)):
        if (number, kind) == (MODEL_GRAPH, BYTES):
            return low, high
    raise InvalidArgument("not an ONNX model (it holds no graph)")


def versions(model: Buffer) -> tuple[int, int]:
    """The IR that a model is written in, and the opset of ONNX's own operators; 0 where it says none.

    >>> versions(elementwise(["Neg"], (1, 8)))
    (8, 13)
    """
    ir, opset = 0, 0
    for number, kind, low, high in fields(model, 0, len(model)):
        if (number, kind) == (MODEL_IR, VARINT):
            ir = varint(model, low)[0]
        elif (number, kind) == (MODEL_OPSET, BYTES):
            parts = {part: (form, a, b) for part, form, a, b in fields(model, low, high)}
            form, a, b = parts.get(OPSET_DOMAIN, (BYTES, 0, 0))
            if form == BYTES and text(model, a, b) in ("", "ai.onnx") and OPSET_VERSION in parts:
                opset = varint(model, parts[OPSET_VERSION][1])[0]
    return ir, opset


def read_node(buffer: Buffer, start: int, end: int) -> Node:
    """The operator that a field of a graph holds."""
    names: dict[int, list[str]] = {number: [] for number in _TEXTS}
    attributes: dict[str, Attribute] = {}
    for number, _, low, high in fields(buffer, start, end):
        if number in names:
            names[number].append(text(buffer, low, high))
        elif number == NODE_ATTRIBUTE:
            attributes.update(_attribute(buffer, low, high))
    name, operator, domain = ("".join(names[number]) for number in (NODE_NAME, NODE_OP, NODE_DOMAIN))
    return Node(name, operator, domain, tuple(names[NODE_INPUT]), tuple(names[NODE_OUTPUT]), attributes)


def _attribute(buffer: Buffer, start: int, end: int) -> dict[str, Attribute]:
    """The attribute by its name; none if it is a tensor or a graph."""
    name = ""
    numbers: list[int] = []
    floats: list[float] = []
    single: Attribute | None = None
    for number, kind, low, high in fields(buffer, start, end):
        if number == ATTRIBUTE_NAME:
            name = text(buffer, low, high)
        elif number == ATTRIBUTE_INT:
            single = integers(buffer, kind, low, high)[0]
        elif number == ATTRIBUTE_FLOAT:
            single = struct.unpack("<f", buffer[low:high])[0]
        elif number == ATTRIBUTE_BYTES:
            single = bytes(buffer[low:high])
        elif number == ATTRIBUTE_INTS:
            numbers += integers(buffer, kind, low, high)
        elif number == ATTRIBUTE_FLOATS:
            floats += struct.unpack(f"<{(high - low) // 4}f", buffer[low:high])
    if numbers or floats:
        single = tuple(numbers) or tuple(floats)
    return {} if single is None else {name: single}


def read_tensor(buffer: Buffer, start: int, end: int) -> tuple[str, tuple[int, ...]]:
    """The name of a tensor, and its dimensions."""
    name, dims = "", []
    for number, kind, low, high in fields(buffer, start, end):
        if number == TENSOR_NAME:
            name = text(buffer, low, high)
        elif number == TENSOR_DIMS:
            dims += integers(buffer, kind, low, high)
    return name, tuple(dims)


def read_value(buffer: Buffer, start: int, end: int) -> tuple[str, tuple[int | None, ...]]:
    """The name of a graph's input or output, and its dimensions."""
    name = ""
    shape: list[int | None] = []
    for number, _, low, high in fields(buffer, start, end):
        if number == VALUE_NAME:
            name = text(buffer, low, high)
        elif number == VALUE_TYPE:
            for dim in nested(buffer, low, high, TYPE_TENSOR, TENSOR_TYPE_SHAPE, SHAPE_DIM):
                sizes = [varint(buffer, at)[0] for number, _, at, _ in fields(buffer, *dim) if number == DIM_SIZE]
                shape.append(sizes[0] if sizes else None)
    return name, tuple(shape)


def elementwise(operators: Sequence[str], shape: Sequence[int]) -> bytes:
    """A model of a chain of operators with one input, such as "Neg", from `x` to `y`."""
    names = ["x", *(f"v{index}" for index in range(1, len(operators))), "y"]
    nodes = [_write_node(operator, [names[at]], names[at + 1]) for at, operator in enumerate(operators)]
    return _write_model(nodes, write_value("x", shape), write_value("y", shape))


def convolution(in_channels: int, out_channels: int, group: int, side: int) -> bytes:
    """A model of one 1×1 convolution on images of `side` × `side`, from `x` to `y`.

    The graph itself makes the weight, so that it takes no space.
    """
    sizes = [out_channels, in_channels // group, 1, 1]
    nodes = [_write_node("ConstantOfShape", ["shape"], "w"), _write_node("Conv", ["x", "w"], "y", group=group)]
    shape = field(TENSOR_DIMS, len(sizes)) + field(TENSOR_TYPE, TYPE_INT64) + field(TENSOR_NAME, "shape")
    shape += b"".join(field(TENSOR_INT64, size) for size in sizes)
    given, made = write_value("x", (1, in_channels, side, side)), write_value("y", (1, out_channels, side, side))
    return _write_model(nodes, given, made, shape)


def write_value(name: str, shape: Sequence[int] | None = None) -> bytes:
    """An input or output of floats; of any shape where none is given."""
    tensor = field(TENSOR_TYPE_ELEMENT, _FLOAT)
    if shape is not None:
        tensor += field(TENSOR_TYPE_SHAPE, b"".join(field(SHAPE_DIM, field(DIM_SIZE, size)) for size in shape))
    return field(VALUE_NAME, name) + field(VALUE_TYPE, field(TYPE_TENSOR, tensor))


def _write_node(operator: str, inputs: Sequence[str], output: str, **attributes: int) -> bytes:
    node = b"".join(field(NODE_INPUT, name) for name in inputs) + field(NODE_OUTPUT, output) + field(NODE_OP, operator)
    for name, value in attributes.items():
        kind = field(ATTRIBUTE_TYPE, _INTEGER_ATTRIBUTE)
        node += field(NODE_ATTRIBUTE, field(ATTRIBUTE_NAME, name) + field(ATTRIBUTE_INT, value) + kind)
    return node


def _write_model(nodes: Sequence[bytes], given: bytes, made: bytes, *initializers: bytes) -> bytes:
    graph = b"".join(field(GRAPH_NODE, node) for node in nodes) + field(GRAPH_NAME, "graph")
    graph += b"".join(field(GRAPH_INITIALIZER, tensor) for tensor in initializers)
    graph += field(GRAPH_INPUT, given) + field(GRAPH_OUTPUT, made)
    opset = field(OPSET_DOMAIN, "") + field(OPSET_VERSION, 13)
    return field(MODEL_IR, 8) + field(MODEL_GRAPH, graph) + field(MODEL_OPSET, opset)
