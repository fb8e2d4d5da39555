"""ONNX graphs, as bytes, cut to the part that is timed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from surgeon.device import onnx_protobuf as pb
from surgeon.device.onnx_protobuf import FEEDER, Graph, Node, graph_span, parse
from surgeon.device.protobuf import VARINT, field, fields, text, varint


def strip(model: bytes) -> bytes:
    """An optimized model without the reorders and feeders at its inputs and the reorders at its outputs.

    A feeder is an operator named `feed_…`, or with an output of such a name, that depends on the graph's inputs
    only. The outputs of feeders and of reorders at the inputs become inputs, and the inputs of reorders at the
    outputs become outputs: tensors (N, channels padded to whole blocks, H, W) in the NCHWc layout. The model is to
    be run with onnxruntime's optimizations off.
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
    """What `strip` removes at the inputs, as a model that computes the stripped model's inputs; None if nothing."""
    graph = parse(model)
    nodes = _entry(graph)
    return _rebuild(model, nodes, list(graph.inputs), _outputs(nodes)) if nodes else None


def repeated(model: bytes, times: int) -> bytes:
    """The model with its operators so many times, on the same inputs and weights.

    What they compute again is no output, so that onnxruntime writes it into the same memory each time. It is to be run
    with optimizations off, which would see that nothing reads it.
    """
    start, end = graph_span(model)
    nodes = [(low, high) for number, _, low, high in fields(model, start, end) if number == pb.GRAPH_NODE]
    known = [pb.read_node(model, low, high) for low, high in nodes]
    made = {name for node in known for name in node.outputs if name}
    graph = bytearray(model[start:end])
    for copy in range(1, times):
        names = {name: f"{name} {copy}" for name in made}
        called = {node.name: f"{node.name} {copy}" for node in known if node.name}
        for low, high in nodes:
            node = _renamed(model, low, high, (pb.NODE_INPUT, pb.NODE_OUTPUT), names)
            graph += field(pb.GRAPH_NODE, _renamed(node, 0, len(node), (pb.NODE_NAME,), called))
    return _with_graph(model, bytes(graph))


def _renamed(model: bytes, start: int, end: int, places: Collection[int], names: Mapping[str, str]) -> bytes:
    """A message with other names in the fields at these places."""
    result = bytearray()
    for number, kind, low, high in fields(model, start, end):
        if number in places:
            name = text(model, low, high)
            result += field(number, names.get(name, name))
        else:
            result += field(number, varint(model, low)[0] if kind == VARINT else model[low:high])
    return bytes(result)


def _entry(graph: Graph) -> list[Node]:
    """The reorders at the inputs and the feeders, in order."""
    known = {"", *graph.inputs, *graph.initializers}
    nodes: list[Node] = []
    for node in graph.nodes:
        reorders = node.is_blocked("ReorderInput") and not node.integer("channels_last", 0)
        feeds = any(name.startswith(FEEDER) for name in (node.name, *node.outputs))
        if (reorders or feeds) and known.issuperset(node.inputs):
            nodes.append(node)
            known.update(node.outputs)
    return nodes


def _outputs(nodes: Collection[Node]) -> list[str]:
    return [name for node in nodes for name in node.outputs if name]


def _is_leaving(node: Node, graph: Graph) -> bool:
    reorders = node.is_blocked("ReorderOutput") and not node.integer("channels_last", 0)
    return reorders and node.outputs[0] in graph.outputs and node.outputs[0] not in graph.readers


def _rebuild(model: bytes, nodes: Collection[Node], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The model with only these nodes, the weights that they read, and these inputs and outputs.

    A value that the model doesn't declare is a float of any shape.
    """
    start, end = graph_span(model)
    needed = {name for node in nodes for name in node.inputs} | set(outputs)
    graph = bytearray()
    declared: dict[str, bytes] = {}
    for number, _, low, high in fields(model, start, end):
        if number in (pb.GRAPH_INPUT, pb.GRAPH_OUTPUT):
            declared[pb.read_value(model, low, high)[0]] = model[low:high]
            continue
        left_out = (number == pb.GRAPH_NODE and pb.read_node(model, low, high) not in nodes) or (
            number == pb.GRAPH_INITIALIZER and pb.read_tensor(model, low, high)[0] not in needed
        )
        if not left_out:
            graph += field(number, model[low:high])
    for number, names in ((pb.GRAPH_INPUT, inputs), (pb.GRAPH_OUTPUT, outputs)):
        for name in names:
            graph += field(number, declared.get(name) or pb.write_value(name))
    return _with_graph(model, bytes(graph))


def _with_graph(model: bytes, graph: bytes) -> bytes:
    """The model with another graph."""
    result = bytearray()
    for number, kind, low, high in fields(model, 0, len(model)):
        if number == pb.MODEL_GRAPH:
            result += field(number, graph)
        else:
            result += field(number, varint(model, low)[0] if kind == VARINT else model[low:high])
    return bytes(result)
