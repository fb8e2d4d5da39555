"""What is put in order in an ONNX graph after torch.onnx has written it."""

import re
from collections.abc import Iterable, Mapping, Sequence

from onnxscript import ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)

WRAPPER_PREFIX = "model."
"""What the exporting wrapper puts before the names of the model's own parameters."""

_FUSIONS = (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)


def tidy(
    model: ir.Model, input_names: Sequence[str], output_names: Sequence[str], axes: Mapping[tuple[int, int], str]
) -> None:
    """Fuse what is left to fuse, give inputs, outputs, free axes and parameters their names, clear metadata, in place.

    `axes` are the names of free axes, by input and axis.

    torch.onnx notes the Python stack of every node in the file; the paths of the machine that exported a
    model are nobody else's business.
    """
    fuse_shared_batch_norms(model)
    _register_constants(model.graph)
    _restore_names(model.graph)
    _name_ends(model.graph, input_names, output_names)
    _name_axes(model.graph, axes)
    _clear_metadata(model)


def fixed_axes(graph: ir.Graph, axes: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those of the axes, by input and axis, whose size is a number."""
    shapes = [value.shape for value in graph.inputs]
    return {(index, axis) for index, axis in axes if isinstance((shapes[index] or ())[axis], int)}


def unfused_batch_norms(graph: ir.Graph) -> list[ir.Node]:
    """The BatchNormalization nodes that could be folded into the convolution before them and are not.

    Not among them: one whose convolution is read by others as well, or whose statistics are computed from
    its input.
    """
    return [node for node in graph if node.op_type == "BatchNormalization" and _foldable(node)]


def fuse_shared_batch_norms(model: ir.Model) -> None:
    """Fold BatchNormalization into convolutions that share their weight with others, in place.

    The optimizer leaves these alone because the folded weights differ; each gets a copy of its own first.
    """
    nodes = unfused_batch_norms(model.graph)
    for node in nodes:
        producer = node.inputs[0].producer()  # type: ignore[union-attr]
        assert producer is not None  # because the node is foldable
        for index, value in enumerate(producer.inputs[1:], start=1):
            if value is None or len(value.uses()) == 1:
                continue
            name = _free_name(f"{value.name}_{producer.outputs[0].name}", _names(model.graph))
            copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
            model.graph.register_initializer(copy)
            producer.replace_input_with(index, copy)
    if nodes:
        rewrite(model, pattern_rewrite_rules=_FUSIONS)


def _foldable(node: ir.Node) -> bool:
    inner = node.inputs[0]
    if inner is None or inner.is_graph_output() or len(inner.uses()) != 1:
        return False
    producer = inner.producer()
    if producer is None or producer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    constants = [value for value in (*producer.inputs[1:], *node.inputs[1:]) if value is not None]
    return all(value.is_initializer() and value.const_value is not None for value in constants)


def _register_constants(graph: ir.Graph) -> None:
    """The optimizer's fusion of clips may make constants that it does not add to the graph."""
    known = {id(value) for value in (*graph.inputs, *graph.initializers.values())}
    names = _names(graph)
    for node in graph.all_nodes():
        for value in node.inputs:
            if value is None or value.const_value is None or value.producer() is not None or id(value) in known:
                continue
            known.add(id(value))
            if value.name is None or value.name in names:
                value.name = _free_name(value.name or "constant", names)
            names.add(value.name)
            graph.register_initializer(value)


def _restore_names(graph: ir.Graph) -> None:
    """Parameters get the names of the model's `state_dict` again."""
    names = _names(graph)
    for value in list(graph.initializers.values()):
        if value.name is not None and value.name.startswith(WRAPPER_PREFIX):
            value.name = _free_name(value.name.removeprefix(WRAPPER_PREFIX), names)
            names.add(value.name)


def _name_ends(graph: ir.Graph, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    """Name the inputs and outputs; another value that has such a name gives it up."""
    ends = dict(zip((*graph.inputs, *graph.outputs), (*input_names, *output_names), strict=True))
    wanted = set(ends.values())
    names = _names(graph) | wanted
    for value in _values(graph):
        if value.name in wanted and ends.get(value) != value.name:
            value.name = _free_name(f"{value.name}_", names)
            names.add(value.name)
    for value, name in ends.items():
        value.name = name


def _name_axes(graph: ir.Graph, axes: Mapping[tuple[int, int], str]) -> None:
    """Free axes get their names, in the inputs and inside of expressions like `49*s77`."""
    symbols: dict[str, str] = {}
    for (index, axis), name in axes.items():
        shape = graph.inputs[index].shape
        size = shape[axis] if shape is not None else None
        if isinstance(size, ir.SymbolicDim) and size.value is not None:
            symbols.setdefault(size.value, name)
    if not symbols:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b")
    for value in _values(graph):
        if value.shape is None:
            continue
        for axis, size in enumerate(value.shape):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                renamed = pattern.sub(lambda match: symbols[match.group()], size.value)
                value.shape[axis] = ir.SymbolicDim(renamed)


def _clear_metadata(model: ir.Model) -> None:
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    items: list[ir.Value | ir.Node] = [*_values(model.graph), *model.graph.all_nodes()]
    for item in items:
        item.doc_string = None
        item.metadata_props.clear()


def _values(graph: ir.Graph) -> list[ir.Value]:
    values = [*graph.inputs, *graph.initializers.values()]
    return values + [output for node in graph.all_nodes() for output in node.outputs]


def _names(graph: ir.Graph) -> set[str]:
    return {value.name for value in _values(graph) if value.name is not None}


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
