"""What becomes of lost positions at each ONNX operator: one rule an operator, those that move axes in `layout`.

A rule says which parts of its weights an operator wants, rewrites its numbers, and gives the masks of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnxscript import ir

from surgeon.deploy.onnx_writer import layout
from surgeon.deploy.onnx_writer.masks import DoesNotFactor, Mask, count, factor, first, merge
from surgeon.deploy.onnx_writer.state import State, Unwritable, integer, place, sizes

Rule = Callable[[ir.Node, State], None]


def apply(node: ir.Node, state: State) -> None:
    """Run the rule of a node's operator.

    Raises:
        Unwritable: it has none, or the rule doesn't cover what is lost here.
    """
    _refuse_captured(node, state)
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        if state.reads(node):
            raise Unwritable(f"{place(node)}: what becomes of lost positions at {node.op_type} is not known")
        return
    try:
        rule(node, state)
    except DoesNotFactor as error:
        raise Unwritable(f"{place(node)}: {error}") from error


def _refuse_captured(node: ir.Node, state: State) -> None:
    """Graphs inside of a node, as of a loop, may read values from outside; none of them may lose positions."""
    for attribute in node.attributes.values():
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        graphs = [attribute.as_graph()] if attribute.type is ir.AttributeType.GRAPH else attribute.as_graphs()
        for inner in (each for graph in graphs for each in graph.all_nodes()):
            if state.reads(inner):
                raise Unwritable(f"{place(node)}: {place(inner)} inside of it would lose positions")


def _same(node: ir.Node, state: State) -> None:
    """The outputs have the axes of the first operand."""
    state.need(node, 0, {})
    for output in range(len(node.outputs)):
        state.give(node, state.of(node.inputs[0]), output)


def _broadcast(node: ir.Node, state: State) -> None:
    """Axes align from the last on; where one operand loses positions, all lose the same."""
    if not state.reads(node):
        return
    values = [value for value in node.inputs if value is not None]
    shapes = {value: sizes(value, node) for value in values}
    rank = max(len(shape) for shape in shapes.values())
    found: dict[int, Mask | None] = {}
    for back in range(1, rank + 1):
        readers = [value for value in values if len(shapes[value]) >= back and shapes[value][-back] != 1]
        # What is computed has lost its positions already; weights follow.
        computed = [value for value in readers if not value.is_initializer()] or readers
        found[back] = first(state.of(value).get(len(shapes[value]) - back) for value in computed)
    for index, value in enumerate(node.inputs):
        if value is not None:
            shape = shapes[value]
            state.need(node, index, {
                len(shape) - back: found[back] for back in range(1, len(shape) + 1) if shape[-back] != 1
            })
    state.give(node, {rank - back: mask for back, mask in found.items() if mask is not None})


def _conv(node: ir.Node, state: State) -> None:
    """Weight `(out channels, in channels of a group, *kernel)`, bias `(out channels)`."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None
    groups, channels = integer(node, "group", 1), state.of(x).get(1)
    state.need(node, 0, {})
    if groups == 1:
        state.need(node, 1, {1: channels})
        out = state.of(weight).get(0)
    else:
        rows = int(sizes(weight, node)[0])
        kept_groups, inner = _grouped(channels, groups)
        given = state.of(weight).get(0)
        out = given
        if given is None and kept_groups is not None:
            out = merge([kept_groups, np.ones(rows // groups, dtype=bool)])
        elif given is not None and not np.array_equal(
            factor(given, (groups, rows // groups))[0], np.ones(groups, bool) if kept_groups is None else kept_groups
        ):
            raise Unwritable(f"{place(node)}: {weight.name!r} keeps other groups than its input")
        state.need(node, 1, {0: out, 1: inner})
        _set_integer(node, "group", groups if kept_groups is None else count(kept_groups))
    state.need(node, 2, {0: out})
    state.give(node, _present({0: state.of(x).get(0), 1: out}))


def _conv_transpose(node: ir.Node, state: State) -> None:
    """Weight `(in channels, out channels of a group, *kernel)`, bias `(out channels)`."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None
    groups, channels = integer(node, "group", 1), state.of(x).get(1)
    columns = state.of(weight).get(1)
    state.need(node, 0, {})
    state.need(node, 1, {0: channels})
    out = columns
    if groups > 1:
        kept_groups, _ = _grouped(channels, groups)
        size = int(sizes(weight, node)[1])
        every = np.ones(groups, dtype=bool) if kept_groups is None else kept_groups
        out = merge([every, np.ones(size, dtype=bool) if columns is None else columns])
        out = None if out.all() else out
        _set_integer(node, "group", count(every))
    state.need(node, 2, {0: out})
    state.give(node, _present({0: state.of(x).get(0), 1: out}))


def _grouped(channels: Mask | None, groups: int) -> tuple[Mask | None, Mask | None]:
    """Which groups stay, and which channels of each; None where all do."""
    if channels is None:
        return None, None
    outer, inner = factor(channels, (groups, channels.size // groups))
    return None if outer.all() else outer, None if inner.all() else inner


def _matmul(node: ir.Node, state: State) -> None:
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    if not state.reads(node):
        return
    rank_a, rank_b = len(sizes(a, node)), len(sizes(b, node))
    inner_a, inner_b = rank_a - 1, max(rank_b - 2, 0)
    sides = [(value, inner) for value, inner in ((a, inner_a), (b, inner_b)) if not value.is_initializer()]
    contracted = first(state.of(value).get(inner) for value, inner in sides or ((a, inner_a), (b, inner_b)))
    need_a: dict[int, Mask | None] = {inner_a: contracted}
    need_b: dict[int, Mask | None] = {inner_b: contracted}
    rank = max(rank_a, rank_b)
    out: dict[int, Mask | None] = {}
    for back in range(3, rank + 1):
        of_a, of_b = state.of(a).get(rank_a - back), state.of(b).get(rank_b - back)
        out[rank - back] = mask = of_a if of_a is not None else of_b
        for value, length, need in ((a, rank_a, need_a), (b, rank_b, need_b)):
            if length >= back and sizes(value, node)[length - back] != 1:
                need[length - back] = mask
    state.need(node, 0, need_a)
    state.need(node, 1, need_b)
    if rank_a >= 2:
        out[rank - 2 if rank_b >= 2 else rank - 1] = state.of(a).get(rank_a - 2)
    if rank_b >= 2:
        out[rank - 1 if rank_a >= 2 else rank - 2] = state.of(b).get(rank_b - 1)
    state.give(node, _present(out))


def _einsum(node: ir.Node, state: State) -> None:
    """Axes of one letter are the same; weights follow what is computed."""
    if not state.reads(node):
        return
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "->" not in equation or "." in equation:
        raise Unwritable(f"{place(node)}: {equation} doesn't name its axes")
    given, made = equation.split("->")
    letters = given.split(",")
    found: dict[str, Mask | None] = {}
    pairs = [(value, text) for value, text in zip(node.inputs, letters, strict=True) if value is not None]
    for value, text in sorted(pairs, key=lambda pair: pair[0].is_initializer()):
        for axis, letter in enumerate(text):
            mask = state.of(value).get(axis)
            if not value.is_initializer() or mask is not None:
                found.setdefault(letter, mask)
    for index, text in enumerate(letters):
        state.need(node, index, {axis: found[letter] for axis, letter in enumerate(text) if letter in found})
    state.give(node, _present({axis: found.get(letter) for axis, letter in enumerate(made)}))


def _gemm(node: ir.Node, state: State) -> None:
    a, b = node.inputs[0], node.inputs[1]
    rows, inner_a = (1, 0) if integer(node, "transA", 0) else (0, 1)
    inner_b, columns = (1, 0) if integer(node, "transB", 0) else (0, 1)
    state.need(node, 0, {})
    state.need(node, 1, {inner_b: state.of(a).get(inner_a)})
    out = {0: state.of(a).get(rows), 1: state.of(b).get(columns)}
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        shape = sizes(node.inputs[2], node)
        state.need(node, 2, {
            axis: out[axis + 2 - len(shape)] for axis in range(len(shape)) if shape[axis] != 1
        })
    state.give(node, _present(out))


def _by_channel(node: ir.Node, state: State) -> None:
    """All other operands have one number for each channel, which is axis 1."""
    masks = state.of(node.inputs[0])
    state.need(node, 0, {})
    for index in range(1, len(node.inputs)):
        state.need(node, index, {0: masks.get(1)})
    state.give(node, masks)


def _group_norm(node: ir.Node, state: State) -> None:
    channels = state.of(node.inputs[0]).get(1)
    groups, _ = _grouped(channels, integer(node, "num_groups", 1))
    if groups is not None:
        _set_integer(node, "num_groups", count(groups))
    _by_channel(node, state)


def _layer_norm(node: ir.Node, state: State) -> None:
    """Scale and bias have the axes from `axis` on."""
    x = node.inputs[0]
    assert x is not None
    masks = state.of(x)
    state.need(node, 0, {})
    if not masks:
        return
    rank = len(sizes(x, node))
    begin = integer(node, "axis", -1) % rank
    for index in range(1, len(node.inputs)):
        value = node.inputs[index]
        if value is None:
            continue
        shape = sizes(value, node)
        state.need(node, index, {
            axis: masks.get(rank - len(shape) + axis) for axis in range(len(shape)) if shape[axis] != 1
        })
    state.give(node, masks)
    for output in range(1, len(node.outputs)):
        state.give(node, {axis: mask for axis, mask in masks.items() if axis < begin}, output)


def _pool(node: ir.Node, state: State) -> None:
    masks = state.of(node.inputs[0])
    if any(axis > 1 for axis in masks):
        raise Unwritable(f"{place(node)}: positions are lost on an axis that is pooled")
    _same(node, state)


def _made(node: ir.Node, state: State) -> None:
    """Sizes of what loses positions follow when the model runs."""
    state.need(node, 0, {})


def _constant_of_shape(node: ir.Node, state: State) -> None:
    copies = state.copies.get(node.outputs[0].name or "", {})
    state.renumber(node, 0, {axis: count(mask) for axis, mask in copies.items()})
    state.give(node, copies)


def _set_integer(node: ir.Node, name: str, value: int) -> None:
    node.attributes[name] = ir.AttrInt64(name, value)


def _present(masks: dict[int, Mask | None]) -> dict[int, Mask]:
    return {axis: mask for axis, mask in masks.items() if mask is not None}


_UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Bernoulli BitwiseNot Cast Ceil Celu Cos Cosh CumSum Dropout Elu Erf Exp
    Floor Gelu HardSigmoid HardSwish Hardmax Identity IsInf IsNaN LeakyRelu Log LogSoftmax LpNormalization Mish Neg Not
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu
    Trilu""".split()
_ELEMENTWISE = """Add And BitwiseAnd BitwiseOr BitwiseXor Clip Div Equal Greater GreaterOrEqual Less LessOrEqual Max
    Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor""".split()
_POOLS = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_ELEMENTWISE, _broadcast),
    **dict.fromkeys(_POOLS, _pool),
    "BatchNormalization": _by_channel,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _by_channel,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "RMSNormalization": _layer_norm,
    "Shape": _made,
    "Size": _made,
    "ConstantOfShape": _constant_of_shape,
    **layout.RULES,
}
