"""Where axes come from that no weight makes: copies of one position, of which fewer are made in a smaller file."""

from __future__ import annotations

from collections.abc import Mapping

from onnxscript import ir

from surgeon.deploy.onnx_writer.layout import pads
from surgeon.deploy.onnx_writer.masks import DoesNotFactor, Mask, Masks, lossy, reshaped, same
from surgeon.deploy.onnx_writer.state import State, Unwritable, integers, sizes

_COPIES = ("Expand",)
_VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_SAME = ("Cast", "Identity", "Neg")
_ELEMENTWISE = ("Add", "Div", "Mul", "Sub", "Where")


def origin(value: ir.Value, wanted: Mapping[int, Mask | None], state: State) -> dict[str, dict[int, Mask]]:
    """Which copies would have to be fewer for a value to have the masks that are wanted; nothing if that can't be.

    A key is the name of a value that an operator makes by copying one position along an axis.
    """
    have = dict(state.of(value))
    goal = {axis: mask for axis, mask in {**have, **wanted}.items() if mask is not None}
    try:
        return _back(value, goal, state)
    except (DoesNotFactor, Unwritable):
        return {}


def _back(value: ir.Value, goal: Masks, state: State) -> dict[str, dict[int, Mask]]:
    have = state.of(value)
    node = value.producer()
    if have.keys() == goal.keys() and all(same(have[axis], goal[axis]) for axis in goal):
        return {}
    if node is None or not node.inputs or node.inputs[0] is None:
        raise Unwritable(f"{value.name!r} is not made of copies")
    if node.op_type == "ConstantOfShape":
        return {value.name or "": dict(goal)}
    source = node.inputs[0]
    if node.op_type in _VIEWS:
        return _back(source, reshaped(goal, sizes(value, node), sizes(source, node)), state)
    if node.op_type == "Transpose":
        order = integers(node, "perm") or list(range(len(sizes(source, node))))[::-1]
        return _back(source, {order[axis]: mask for axis, mask in goal.items()}, state)
    if node.op_type in _SAME:
        return _back(source, goal, state)
    if node.op_type in _ELEMENTWISE:
        return _operands(node, value, goal, state)
    if node.op_type == "Pad":
        return _borders(node, value, source, goal, state)
    if node.op_type in _COPIES:
        return _copies(node, value, source, goal, state)
    raise Unwritable(f"{value.name!r} is not made of copies")


def _operands(node: ir.Node, value: ir.Value, goal: Masks, state: State) -> dict[str, dict[int, Mask]]:
    rank = len(sizes(value, node))
    found: dict[str, dict[int, Mask]] = {}
    for operand in node.inputs:
        if operand is None or operand.is_initializer():
            continue
        shape = sizes(operand, node)
        shift = rank - len(shape)
        found |= _back(operand, {
            axis - shift: mask for axis, mask in goal.items() if axis >= shift and shape[axis - shift] != 1
        }, state)
    return found


def _borders(
    node: ir.Node, value: ir.Value, source: ir.Value, goal: Masks, state: State
) -> dict[str, dict[int, Mask]]:
    """Channels that a pad adds, of which it adds fewer; what it pads stays as it is."""
    borders = pads(node, len(sizes(source, node)))
    inside = {axis: mask[borders[axis][0] : mask.size - borders[axis][1]] for axis, mask in goal.items()}
    found = {} if source.is_initializer() else _back(source, lossy(inside), state)
    return found | {value.name or "": {axis: mask for axis, mask in goal.items() if any(borders[axis])}}


def _copies(
    node: ir.Node, value: ir.Value, source: ir.Value, goal: Masks, state: State
) -> dict[str, dict[int, Mask]]:
    if source.is_initializer():
        return {value.name or "": dict(goal)}
    shape = sizes(source, node)
    shift = len(sizes(value, node)) - len(shape)
    made = {axis: mask for axis, mask in goal.items() if axis < shift or shape[axis - shift] == 1}
    rest = {axis - shift: mask for axis, mask in goal.items() if axis not in made}
    return _back(source, rest, state) | ({value.name or "": made} if made else {})
