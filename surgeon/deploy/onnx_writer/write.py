"""Writes a smaller ONNX file from a larger one: weights are sliced, and numbers that count their channels rewritten."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx_ir.external_data import load_to_model
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript import ir

from surgeon.deploy.conversion import save
from surgeon.deploy.onnx_writer.masks import Mask, Masks, count, of_positions
from surgeon.deploy.onnx_writer.origin import origin
from surgeon.deploy.onnx_writer.rules import apply
from surgeon.deploy.onnx_writer.state import State, Unlike, Unwritable, array_of
from surgeon.device.ort_session import check_file
from surgeon.support.files import replace_beside

# What onnx's shape inference calls a size of which it finds nothing.
_UNKNOWN = "unk__"

Cuts = Mapping[str, Mapping[int, Sequence[int] | np.ndarray]]


def write(base: str | os.PathLike[str], path: str | os.PathLike[str], cuts: Cuts) -> None:
    """Write to `path` the model in `base` with only the kept positions of its weights.

    `cuts` gives for weights, by their names in the file, the kept positions of the axes that lose any. What stays of
    other weights and constants follows from what they are combined with: a bias has the channels of its convolution.
    Whether the result computes what it is meant to has to be checked by running it.

    Raises:
        InvalidArgument: there is no valid ONNX file at `base`.
        OutputError: `path` can't be written.
        Unwritable: an operator loses positions of which surgeon doesn't know what becomes there, or its operands don't
            fit each other, as where a weight that loses positions is not in `cuts`.

    >>> import onnx, tempfile
    >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[1, 2] x) => (float[1, 2] y)'
    >>> text += ' <float[2, 3] a = {1, 2, 3, 4, 5, 6}, float[3, 2] b = {1, 2, 3, 4, 5, 6}>'
    >>> text += ' { h = MatMul(x, a)  y = MatMul(h, b) }'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(onnx.parser.parse_model(text), f"{folder}/base.onnx")
    ...     write(f"{folder}/base.onnx", f"{folder}/slim.onnx", {"a": {1: [0, 2]}})
    ...     slim = onnx.load(f"{folder}/slim.onnx")
    >>> [(each.name, onnx.numpy_helper.to_array(each).tolist()) for each in slim.graph.initializer]
    [('a', [[1.0, 3.0], [4.0, 6.0]]), ('b', [[1.0, 2.0], [5.0, 6.0]])]
    """
    copies: dict[str, dict[int, Mask]] = {}
    while True:
        model, state = _prepared(base, cuts, copies)
        try:
            for node in list(model.graph):
                apply(node, state)
            break
        except Unlike as error:
            # Known only now that the walk has come to the reader: it begins anew, from the file as it is.
            more = origin(error.value, error.wanted, state)
            if not more or more.keys() <= copies.keys():
                raise
            copies |= more
    _finish(model, state)
    target = Path(path)
    with replace_beside(target) as scratch:
        save(model, scratch / target.name)


def _prepared(base: str | os.PathLike[str], cuts: Cuts, copies: Mapping[str, Masks]) -> tuple[ir.Model, State]:
    check_file(base)
    model = ir.load(base)
    load_to_model(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if not all(_is_known(output.shape) for node in model.graph for output in node.outputs):
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    known = {}
    for name, kept in cuts.items():
        weight = model.graph.initializers.get(name)
        if weight is None or weight.const_value is None:
            raise Unwritable(f"{Path(base).name} has no weight {name!r}")
        known[name] = of_positions(kept, weight.const_value.numpy().shape)
    return model, State(model.graph, known, copies)


def _is_known(shape: ir.Shape | None) -> bool:
    """Whether a shape says of each size how much it is, or what it is called, other than by shape inference."""
    if shape is None:
        return False
    return all(isinstance(size, int) or not (size.value or _UNKNOWN).startswith(_UNKNOWN) for size in shape)


def _finish(model: ir.Model, state: State) -> None:
    """Cut the weights, and correct the shapes that the file tells."""
    for output in model.graph.outputs:
        if state.of(output):
            raise Unwritable(f"the output {output.name!r} would lose positions")
    _slice(state)
    for value, masks in state.masks.items():
        value.shape = _smaller(value.shape, masks)
    RemoveUnusedNodesPass()(model)


def _slice(state: State) -> None:
    """Cut every weight as its readers want it: where they want unlike parts, each gets its own."""
    readers: dict[ir.Value, list[tuple[ir.Node, int]]] = defaultdict(list)
    for node, index in state.wanted:
        value = node.inputs[index]
        assert value is not None  # because something is wanted of it
        readers[value].append((node, index))
    for value, uses in readers.items():
        if not any(state.wanted[use] for use in uses):
            continue
        array = array_of(value)
        if array is None or value.is_graph_output() or value.is_graph_input():
            raise Unwritable(f"{value.name!r} would lose positions, and is no constant inside of the graph")
        alone = len(uses) == len(value.uses()) and all(state.wanted[use] for use in uses)
        parts: dict[bytes, ir.Value] = {b"": value}
        for use in uses:
            masks = state.wanted[use]
            key = b"".join(axis.to_bytes(2) + mask.tobytes() for axis, mask in sorted(masks.items()))
            if key not in parts:
                parts[key] = _part(value, array, masks, state, keep_name=alone and len(parts) == 1)
            use[0].replace_input_with(use[1], parts[key])


def _part(value: ir.Value, array: np.ndarray, masks: Masks, state: State, keep_name: bool) -> ir.Value:
    for axis, mask in masks.items():
        array = array.compress(mask, axis=axis)
    name = value.name if keep_name else state.name(f"{value.name}_slim")
    tensor = ir.tensor(np.ascontiguousarray(array), name=name, dtype=value.dtype)
    if keep_name:
        value.const_value, value.shape = tensor, ir.Shape(array.shape)
        return value
    made = ir.Value(name=name, shape=ir.Shape(array.shape), type=value.type, const_value=tensor)
    state.graph.register_initializer(made)
    return made


def _smaller(shape: ir.Shape | None, masks: Masks) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([count(masks[axis]) if axis in masks else size for axis, size in enumerate(shape)])
