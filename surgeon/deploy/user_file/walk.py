"""The parts of an ONNX model in the order in which they stand there, and what of it is alive."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

Owner = GraphProto | FunctionProto


def owners(model: ModelProto) -> Iterator[Owner]:
    """The graph, those inside of its nodes, and the functions."""
    yield from _inside(model.graph)
    for function in model.functions:
        yield from _inside(function)


def _inside(owner: Owner) -> Iterator[Owner]:
    yield owner
    for node in owner.node:
        for graph in graphs_of(node):
            yield from _inside(graph)


def graphs_of(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def parts(model: ModelProto) -> Iterator[tuple[Message, Owner]]:
    """Its nodes and tensors, each with what holds it."""
    for owner in owners(model):
        if isinstance(owner, GraphProto):
            for tensor in owner.initializer:
                yield tensor, owner
        for node in owner.node:
            yield node, owner
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t, owner


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    for part, _ in parts(model):
        if isinstance(part, TensorProto):
            yield part


def names(model: ModelProto) -> set[str]:
    """All names of values and nodes."""
    found: set[str] = set()
    for owner in owners(model):
        if isinstance(owner, GraphProto):
            found.update(each.name for each in (*owner.input, *owner.output, *owner.initializer))
        for node in owner.node:
            found.update((node.name, *node.input, *node.output))
    return found


def reads(node: NodeProto) -> Iterator[str]:
    """The values that a node needs, those of the graphs inside of it among them."""
    yield from node.input
    for graph in graphs_of(node):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from reads(inner)


def dead(owner: Owner) -> list[int]:
    """The places of the nodes that no output needs."""
    wanted = {each.name if isinstance(owner, GraphProto) else each for each in owner.output}
    found = []
    for place in range(len(owner.node) - 1, -1, -1):
        node = owner.node[place]
        if wanted.isdisjoint(node.output):
            found.append(place)
        else:
            wanted.update(reads(node))
    return found[::-1]
