"""ONNX files as bytes: their graph is read, and cut, without the onnx package.

An ONNX file is a protobuf message: a run of fields, each a number, a wire type and a value. Fields that aren't
asked for are jumped over, so that the time to read a file does not depend on the size of its weights.
"""

import dataclasses
import mmap
import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from surgeon.errors import InvalidArgument
from surgeon.support.opening import Unfit, open_file

Buffer = bytes | mmap.mmap
Attribute = int | float | bytes | tuple[int, ...] | tuple[float, ...]

BLOCKED_DOMAIN: Final = "com.microsoft.nchwc"
"""The domain of operators on tensors whose channels are stored in blocks of the CPU's vector width."""

FEEDER: Final = "feed_"
"""What the name of an operator, or of a value that it makes, begins with if it only prepares inputs."""

_FIELDS: Final = 2_000_000
_LARGEST: Final = (2 << 30) - 1
"""Bytes that a protobuf message can have."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT = 1

# Numbers of the fields of each message, from onnx.proto
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET = 1, 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_NODE_TEXTS = (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP, _NODE_DOMAIN)
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_BYTES = 1, 2, 3, 4
_ATTRIBUTE_FLOATS, _ATTRIBUTE_INTS = 7, 8
_TENSOR_DIMS, _TENSOR_NAME = 1, 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TENSOR_TYPE_ELEMENT, _TENSOR_TYPE_SHAPE = 1, 1, 2
_SHAPE_DIM, _DIM_SIZE = 1, 1


@dataclasses.dataclass(frozen=True)
class Node:
    """An operator; `inputs` and `outputs` name values, "" an input that is left out."""

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


@dataclasses.dataclass(frozen=True)
class Graph:
    """The nodes in order, the initializers' dimensions, and inputs and outputs with their dimensions.

    A dimension that has no number is None.
    """

    nodes: tuple[Node, ...]
    initializers: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, tuple[int | None, ...]]

    @property
    def blocked(self) -> bool:
        """Whether an operator works on channels in blocks; a mere change of layout is none."""
        return any(node.domain == BLOCKED_DOMAIN and not node.op_type.startswith("Reorder") for node in self.nodes)


def read(path: str | os.PathLike[str]) -> Graph:
    """The graph of an ONNX file. Weights beside it are not looked for.

    Raises `InvalidArgument` if the file is missing, empty or not ONNX.
    """
    with mapped(path) as content:
        try:
            return parse(content)
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: {error}") from error


@contextmanager
def mapped(path: str | os.PathLike[str]) -> Iterator[mmap.mmap]:
    """The bytes of a file. Raises `InvalidArgument` if it is missing, empty or no file."""
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
            if number == _GRAPH_NODE:
                nodes.append(_node(model, low, high))
            elif number == _GRAPH_INITIALIZER:
                name, dims = _tensor(model, low, high)
                initializers[name] = dims
            elif number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
                name, shape = _value(model, low, high)
                (inputs if number == _GRAPH_INPUT else outputs)[name] = shape
    except (IndexError, UnicodeDecodeError, struct.error) as error:
        raise InvalidArgument(f"not an ONNX model ({error})") from error
    return Graph(tuple(nodes), initializers, inputs, outputs)


def strip(model: bytes) -> bytes:
    """An optimised model without what leads into it and out of it: layout changes and feeders.

    A feeder is an operator that is named `feed_…`, or makes a value of such a name, from the graph's inputs
    alone. What feeders and the layout changes at the inputs make become inputs, and what the layout changes at
    the outputs take become outputs: tensors of (N, channels padded to whole blocks, H, W), whose channels are
    stored in blocks. The model runs with onnxruntime's optimisations off.
    """
    graph = parse(model)
    head = _entry(graph)
    made = {name for node in graph.nodes for name in node.outputs}
    leaving = [node for node in graph.nodes if _is_leaving(node, graph) and node.inputs[0] in made]
    left = [node for node in graph.nodes if node not in head and node not in leaving]
    renamed = {node.outputs[0]: node.inputs[0] for node in leaving}
    outputs = list(dict.fromkeys(renamed.get(name, name) for name in graph.outputs))
    needed = {name for node in left for name in node.inputs} | set(outputs)
    inputs = [name for name in (*graph.inputs, *_outputs(head)) if name in needed]
    return _rebuild(model, left, inputs, outputs)


def entry(model: bytes) -> bytes | None:
    """What `strip` takes off the inputs of a model, as a model that makes its inputs; None if that is nothing."""
    graph = parse(model)
    nodes = _entry(graph)
    return _rebuild(model, nodes, list(graph.inputs), _outputs(nodes)) if nodes else None


def elementwise(operators: Sequence[str], shape: Sequence[int]) -> bytes:
    """A model in which operators of one input, such as "Neg", follow one another, from `x` to `y`."""
    names = ["x", *(f"v{index}" for index in range(1, len(operators))), "y"]
    graph = b"".join(
        _message(
            _GRAPH_NODE,
            _string(_NODE_INPUT, names[index])
            + _string(_NODE_OUTPUT, names[index + 1])
            + _string(_NODE_OP, operator),
        )
        for index, operator in enumerate(operators)
    )
    graph += _string(_GRAPH_NAME, "elementwise")
    graph += _message(_GRAPH_INPUT, _float_value("x", shape)) + _message(_GRAPH_OUTPUT, _float_value("y", shape))
    opset = _string(_OPSET_DOMAIN, "") + _integer(_OPSET_VERSION, 13)
    return _integer(_MODEL_IR, 8) + _message(_MODEL_GRAPH, graph) + _message(_MODEL_OPSET, opset)


def _entry(graph: Graph) -> list[Node]:
    """The layout changes at the inputs and the feeders, in order."""
    known = {"", *graph.inputs, *graph.initializers}
    nodes: list[Node] = []
    for node in graph.nodes:
        kind = (node.domain, node.op_type)
        reorders = kind == (BLOCKED_DOMAIN, "ReorderInput") and not node.integer("channels_last", 0)
        feeds = any(name.startswith(FEEDER) for name in (node.name, *node.outputs))
        if (reorders or feeds) and known.issuperset(node.inputs):
            nodes.append(node)
            known.update(node.outputs)
    return nodes


def _outputs(nodes: Collection[Node]) -> list[str]:
    return [name for node in nodes for name in node.outputs if name]


def _is_leaving(node: Node, graph: Graph) -> bool:
    reorders = (node.domain, node.op_type) == (BLOCKED_DOMAIN, "ReorderOutput")
    readers = sum(node.outputs[0] in other.inputs for other in graph.nodes)
    return reorders and node.outputs[0] in graph.outputs and not readers and not node.integer("channels_last", 0)


def _rebuild(model: bytes, nodes: Collection[Node], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The model with these of its nodes, the weights that they read, and these inputs and outputs.

    A value that the model doesn't declare is a float of any shape.
    """
    start, end = graph_span(model)
    needed = {name for node in nodes for name in node.inputs} | set(outputs)
    graph = bytearray()
    declared: dict[str, bytes] = {}
    for number, _, low, high in fields(model, start, end):
        if number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            declared[_value(model, low, high)[0]] = model[low:high]
            continue
        left_out = (number == _GRAPH_NODE and _node(model, low, high) not in nodes) or (
            number == _GRAPH_INITIALIZER and _tensor(model, low, high)[0] not in needed
        )
        if not left_out:
            graph += _message(number, model[low:high])
    for number, names in ((_GRAPH_INPUT, inputs), (_GRAPH_OUTPUT, outputs)):
        for name in names:
            graph += _message(number, declared.get(name) or _float_value(name))
    result = bytearray()
    for number, kind, low, high in fields(model, 0, len(model)):
        if number == _MODEL_GRAPH:
            result += _message(number, bytes(graph))
        elif kind == _VARINT:
            result += _integer(number, varint(model, low)[0])
        else:
            result += _message(number, model[low:high])
    return bytes(result)


def graph_span(model: Buffer) -> tuple[int, int]:
    """Where the graph begins and ends."""
    for number, kind, low, high in fields(model, 0, len(model)):
        if (number, kind) == (_MODEL_GRAPH, _BYTES):
            return low, high
    raise InvalidArgument("not an ONNX model (it holds no graph)")


def _node(buffer: Buffer, start: int, end: int) -> Node:
    names: dict[int, list[str]] = {number: [] for number in _NODE_TEXTS}
    attributes: dict[str, Attribute] = {}
    for number, _, low, high in fields(buffer, start, end):
        if number in names:
            names[number].append(text(buffer, low, high))
        elif number == _NODE_ATTRIBUTE:
            attributes.update(_attribute(buffer, low, high))
    name, operator, domain = ("".join(names[number]) for number in (_NODE_NAME, _NODE_OP, _NODE_DOMAIN))
    return Node(name, operator, domain, tuple(names[_NODE_INPUT]), tuple(names[_NODE_OUTPUT]), attributes)


def _attribute(buffer: Buffer, start: int, end: int) -> dict[str, Attribute]:
    """The attribute by its name; none if it is a tensor or a graph."""
    name = ""
    integers: list[int] = []
    floats: list[float] = []
    single: Attribute | None = None
    for number, kind, low, high in fields(buffer, start, end):
        if number == _ATTRIBUTE_NAME:
            name = text(buffer, low, high)
        elif number == _ATTRIBUTE_INT:
            single = _signed(varint(buffer, low)[0])
        elif number == _ATTRIBUTE_FLOAT:
            single = struct.unpack("<f", buffer[low:high])[0]
        elif number == _ATTRIBUTE_BYTES:
            single = bytes(buffer[low:high])
        elif number == _ATTRIBUTE_INTS:
            integers += _integers(buffer, kind, low, high)
        elif number == _ATTRIBUTE_FLOATS:
            floats += struct.unpack(f"<{(high - low) // 4}f", buffer[low:high])
    if integers or floats:
        single = tuple(integers) or tuple(floats)
    return {} if single is None else {name: single}


def _tensor(buffer: Buffer, start: int, end: int) -> tuple[str, tuple[int, ...]]:
    name, dims = "", []
    for number, kind, low, high in fields(buffer, start, end):
        if number == _TENSOR_NAME:
            name = text(buffer, low, high)
        elif number == _TENSOR_DIMS:
            dims += _integers(buffer, kind, low, high)
    return name, tuple(dims)


def _value(buffer: Buffer, start: int, end: int) -> tuple[str, tuple[int | None, ...]]:
    name = ""
    shape: list[int | None] = []
    for number, _, low, high in fields(buffer, start, end):
        if number == _VALUE_NAME:
            name = text(buffer, low, high)
        elif number == _VALUE_TYPE:
            for dim in _nested(buffer, low, high, _TYPE_TENSOR, _TENSOR_TYPE_SHAPE, _SHAPE_DIM):
                sizes = [varint(buffer, at)[0] for number, _, at, _ in fields(buffer, *dim) if number == _DIM_SIZE]
                shape.append(sizes[0] if sizes else None)
    return name, tuple(shape)


def _nested(buffer: Buffer, start: int, end: int, *path: int) -> Iterator[tuple[int, int]]:
    """The spans of the messages that a path of field numbers leads to."""
    for number, _, low, high in fields(buffer, start, end):
        if number == path[0]:
            if len(path) == 1:
                yield low, high
            else:
                yield from _nested(buffer, low, high, *path[1:])


def fields(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, start and end of the value) of the fields of a message."""
    position, count = start, 0
    while position < end:
        key, position = varint(buffer, position)
        number, kind = key >> 3, key & 7
        count += 1
        if not number or count > _FIELDS:
            raise InvalidArgument(f"not an ONNX model (no field, or too many, at byte {position})")
        if kind == _VARINT:
            low, high = position, varint(buffer, position)[1]
        elif kind == _BYTES:
            length, low = varint(buffer, position)
            high = low + length
        elif kind in (_FIXED64, _FIXED32):
            low, high = position, position + (8 if kind == _FIXED64 else 4)
        else:
            raise InvalidArgument(f"not an ONNX model (wire type {kind} at byte {position})")
        if high > end:
            raise InvalidArgument(f"not an ONNX model (cut off at byte {end})")
        yield number, kind, low, high
        position = high


def varint(buffer: Buffer, position: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    value = shift = 0
    while shift < 70:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise InvalidArgument(f"not an ONNX model (an endless number at byte {position})")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _integers(buffer: Buffer, kind: int, low: int, high: int) -> list[int]:
    """A repeated integer's values in one field: one of them, or all of them packed."""
    if kind == _VARINT:
        return [_signed(varint(buffer, low)[0])]
    values = []
    while low < high:
        value, low = varint(buffer, low)
        values.append(_signed(value))
    return values


def text(buffer: Buffer, low: int, high: int) -> str:
    """The text of a field."""
    return bytes(buffer[low:high]).decode("utf-8")


def _float_value(name: str, shape: Sequence[int] | None = None) -> bytes:
    tensor = _integer(_TENSOR_TYPE_ELEMENT, _FLOAT)
    if shape is not None:
        tensor += _message(
            _TENSOR_TYPE_SHAPE, b"".join(_message(_SHAPE_DIM, _integer(_DIM_SIZE, size)) for size in shape)
        )
    return _string(_VALUE_NAME, name) + _message(_VALUE_TYPE, _message(_TYPE_TENSOR, tensor))


def _message(number: int, content: bytes) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(len(content)) + content


def _string(number: int, text: str) -> bytes:
    return _message(number, text.encode())


def _integer(number: int, value: int) -> bytes:
    return _encode(number << 3 | _VARINT) + _encode(value)


def _encode(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
