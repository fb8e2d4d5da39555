"""The nodes of a graph in the order in which they run, functions of the file put in place of their calls."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto

from surgeon.errors import InvalidModel
from surgeon.onnx_import.table import row
from surgeon.onnx_import.tensors import Constant

#: How deep functions may call one another, and how many nodes they may become.
MOST_CALLS, MOST_NODES = 32, 1_000_000


@dataclass
class Node:
    """A node, and what it is in the file: `proto` is None for one that stands for no node there."""

    kind: str
    domain: str
    opset: int
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    place: str
    proto: NodeProto | None = None
    bodies: dict[str, Graph] = field(default_factory=dict)

    @property
    def reads(self) -> Iterator[str]:
        """The values that it needs, those of its inner graphs too."""
        yield from (name for name in self.inputs if name)
        for body in self.bodies.values():
            yield from body.free


@dataclass
class Graph:
    """A graph inside of another: its nodes in order, and `free`, the values that it takes from outside."""

    nodes: list[Node]
    inputs: list[str]
    outputs: list[str]
    constants: dict[str, Constant]
    free: list[str]


@dataclass(frozen=True)
class Functions:
    """The functions of a file, and the opsets of what calls them."""

    by_name: Mapping[tuple[str, str, str], FunctionProto]
    folder: Path

    def of(self, node: NodeProto) -> FunctionProto | None:
        return self.by_name.get((_domain(node.domain), node.op_type, node.overload))


class Reader:
    """Reads graphs. `count` is how many nodes were read."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self.count = 0

    def graph(self, proto: GraphProto, opsets: Mapping[str, int], prefix: str = "",
              given: Mapping[str, AttributeProto] | None = None, names: Mapping[str, str] | None = None) -> Graph:
        """The graph; names of values in a function's are those of the call, or have its prefix.

        Raises:
            InvalidModel: it is no graph: values are made twice, or by one another, or by nothing.
        """
        require_text(*(each.name for each in (*proto.input, *proto.output, *proto.initializer)))
        known = dict(names or {})
        inner: set[str] = {value.name for value in (*proto.input, *proto.initializer)}
        inner |= {name for node in proto.node for name in node.output}
        known.update({name: f"{prefix}{name}" for name in inner if name} if prefix else {})
        folder = self._functions.folder
        constants = {
            known.get(t.name, t.name): Constant(known.get(t.name, t.name), t, folder, True) for t in proto.initializer
        }
        inputs = [known.get(v.name, v.name) for v in proto.input if known.get(v.name, v.name) not in constants]
        nodes = list(self._nodes(proto.node, opsets, known, given or {}, prefix, 0))
        outputs = [known.get(v.name, v.name) for v in proto.output]
        return _ordered(nodes, inputs, outputs, constants)

    def _nodes(self, protos: Iterable[NodeProto], opsets: Mapping[str, int], names: Mapping[str, str],
               given: Mapping[str, AttributeProto], prefix: str, depth: int) -> Iterator[Node]:
        for index, proto in enumerate(protos):
            self.count += 1
            if self.count > MOST_NODES:
                raise InvalidModel(f"the file has more than {MOST_NODES:,} nodes, its functions put in place")
            require_text(
                proto.name, proto.op_type, proto.domain, proto.overload, *proto.input, *proto.output,
                *(text for each in proto.attribute for text in (each.name, each.ref_attr_name)),
            )
            domain = _domain(proto.domain)
            place = f"the node {proto.name or index!r} ({proto.op_type})"
            opset = opsets.get(domain, opsets.get("", 1) if not domain else 1)
            function = None
            if row(domain, proto.op_type) is None:
                function = self._functions.of(proto) or _definition(domain, proto.op_type, opset)
            if function is not None:
                if depth >= MOST_CALLS:
                    raise InvalidModel(f"{place}: functions call one another more than {MOST_CALLS} deep")
                own = f"{prefix}{proto.name or f'{proto.op_type}_{index}'}/"
                yield from self._called(proto, function, opsets, names, given, own, depth)
                continue
            attributes, bodies = self._attributes(proto, opsets, names, given, place, prefix)
            yield Node(
                proto.op_type, domain, opset, [names.get(name, name) for name in proto.input],
                [names.get(name, name) for name in proto.output], attributes, place, proto, bodies,
            )

    def _called(self, call: NodeProto, function: FunctionProto, opsets: Mapping[str, int], names: Mapping[str, str],
                given: Mapping[str, AttributeProto], prefix: str, depth: int) -> Iterator[Node]:
        """The nodes of a function, put in place of a call."""
        own = {name: f"{prefix}{name}" for node in function.node for name in node.output if name}
        arguments = [names.get(name, name) for name in call.input]
        own.update(zip(function.input, [*arguments, *[""] * len(function.input)], strict=False))
        handed = {a.name: _resolved(a, given) for a in call.attribute}
        default = {a.name: a for a in function.attribute_proto}
        values = {name: a for name, a in {**default, **handed}.items() if a is not None}
        imported = {_domain(each.domain): each.version for each in function.opset_import} or dict(opsets)
        yield from self._nodes(function.node, imported, own, values, prefix, depth + 1)
        pairs = zip(function.output, call.output, strict=False)
        for name, out in ((own.get(name, name), names.get(out, out)) for name, out in pairs):
            if out:
                yield Node("Identity", "", imported.get("", 1), [name], [out], {}, f"the node {call.name!r}")

    def _attributes(
        self, proto: NodeProto, opsets: Mapping[str, int], names: Mapping[str, str],
        given: Mapping[str, AttributeProto], place: str, prefix: str,
    ) -> tuple[dict[str, Any], dict[str, Graph]]:
        attributes: dict[str, Any] = {}
        bodies: dict[str, Graph] = {}
        for number, each in enumerate(proto.attribute):
            found = _resolved(each, given)
            if found is None:
                continue
            if found.type == AttributeProto.GRAPH:
                inside = f"{prefix}{proto.name or proto.op_type}.{self.count}.{number}/"
                bodies[each.name] = self.graph(found.g, opsets, inside, given, names)
            else:
                attributes[each.name] = _decoded(found, place, self._functions.folder)
        return attributes, bodies


def require_text(*names: Any) -> None:
    """Refuse names that are no text, which protobuf leaves as bytes.

    Raises:
        InvalidModel: one of them is none.
    """
    for name in names:
        if not isinstance(name, str):
            raise InvalidModel(f"the name {name!r} is not text; the file is damaged")


def _resolved(attribute: AttributeProto, given: Mapping[str, AttributeProto]) -> AttributeProto | None:
    return given.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute


def _decoded(attribute: AttributeProto, place: str, folder: Path) -> Any:
    match attribute.type:
        case AttributeProto.FLOAT:
            return attribute.f
        case AttributeProto.INT:
            return attribute.i
        case AttributeProto.STRING:
            return attribute.s.decode("utf-8", "replace")
        case AttributeProto.FLOATS:
            return tuple(attribute.floats)
        case AttributeProto.INTS:
            return tuple(attribute.ints)
        case AttributeProto.STRINGS:
            return tuple(each.decode("utf-8", "replace") for each in attribute.strings)
        case AttributeProto.TENSOR:
            return Constant(f"{place}.{attribute.name}", attribute.t, folder)
    kinds = {number: name for name, number in AttributeProto.AttributeType.items()}
    kind = kinds.get(attribute.type, attribute.type)
    raise InvalidModel(f"{place} has the attribute {attribute.name!r} of kind {kind}, which is not read")


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _definition(domain: str, kind: str, opset: int) -> FunctionProto | None:
    """ONNX's own definition of an operator by others, where it has one that holds for all types."""
    if not 0 < opset < 1 << 31:
        return None
    try:
        schema = onnx.defs.get_schema(kind, opset, domain)
    except onnx.defs.SchemaError:
        return None
    return schema.function_body if getattr(schema, "has_function", False) else None


def _ordered(
    nodes: Sequence[Node], inputs: list[str], outputs: list[str], constants: dict[str, Constant]
) -> Graph:
    """The nodes in an order in which each runs after those that make what it reads: the file's where it is one."""
    makers: dict[str, int] = {}
    for place, node in enumerate(nodes):
        for name in node.outputs:
            if not name:
                continue
            if name in makers or name in constants or name in inputs:
                raise InvalidModel(f"{node.place} makes the value {name!r}, which is made elsewhere too")
            makers[name] = place
    waits = [{makers[name] for name in node.reads if name in makers} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for place, needed in enumerate(waits):
        for each in needed:
            readers[each].append(place)
    left = [len(needed) for needed in waits]
    ready = [place for place, count in enumerate(left) if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        place = heapq.heappop(ready)
        order.append(place)
        for reader in readers[place]:
            left[reader] -= 1
            if not left[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(node for place, node in enumerate(nodes) if left[place])
        raise InvalidModel(f"{stuck.place} needs what is made of its own output; the file is damaged")
    needed_by = live([nodes[place] for place in order], outputs)
    own = {*makers, *constants, *inputs}
    free = [name for node in needed_by for name in node.reads if name not in own]
    free += [name for name in outputs if name not in own]
    return Graph(needed_by, inputs, outputs, constants, list(dict.fromkeys(free)))


def live(nodes: list[Node], outputs: Iterable[str]) -> list[Node]:
    """The nodes that an output needs."""
    wanted = set(outputs)
    found = []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            found.append(node)
            wanted.update(node.reads)
    return found[::-1]
