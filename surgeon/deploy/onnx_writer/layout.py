"""What becomes of lost positions at the ONNX operators that move, merge, divide, cut or join axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnxscript import ir

from surgeon.deploy.onnx_writer.masks import Mask, Masks, count, factor, first, merge, reshaped, same
from surgeon.deploy.onnx_writer.state import State, Unwritable, array_of, integer, integers, place, sizes

#: What stands for "to the end" in a slice.
_END = np.iinfo(np.int64).max


#: What an operator does whose first operand loses positions, by that operand and its masks.
_Move = Callable[[ir.Node, State, ir.Value, Masks], None]


def _operand(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None  # because the operator needs it
    return value


def _moves(rule: _Move) -> Callable[[ir.Node, State], None]:
    """The rule of an operator that has nothing to do where its first operand loses no positions."""

    def apply(node: ir.Node, state: State) -> None:
        x = _operand(node)
        state.need(node, 0, {})
        if masks := state.of(x):
            rule(node, state, x, masks)

    return apply


@_moves
def _reshape(node: ir.Node, state: State, x: ir.Value, masks: Masks) -> None:
    old, new = sizes(x, node), sizes(node.outputs[0], node)
    out = reshaped(masks, old, new)
    if node.op_type == "Reshape":
        numbers = {axis: count(mask) for axis, mask in out.items()}
        state.renumber(node, 1, _unless_copied(node, numbers, masks))
    state.give(node, out)


def _unless_copied(node: ir.Node, numbers: dict[int, int], masks: Masks) -> dict[int, int]:
    """The numbers to write; a 0 copies the size of the operand's axis of the same place, which may be right."""
    written = array_of(node.inputs[1])
    if written is None or integer(node, "allowzero", 0):
        return numbers
    return {
        axis: number for axis, number in numbers.items()
        if written[axis] != 0 or axis not in masks or count(masks[axis]) != number
    }


@_moves
def _transpose(node: ir.Node, state: State, x: ir.Value, masks: Masks) -> None:
    order = integers(node, "perm") or list(range(len(sizes(x, node))))[::-1]
    state.give(node, {at: masks[axis] for at, axis in enumerate(order) if axis in masks})


@_moves
def _squeeze(node: ir.Node, state: State, x: ir.Value, masks: Masks) -> None:
    """Axes of size 1 come or go, so that the others keep their order."""
    old, rank = sizes(x, node), len(sizes(node.outputs[0], node))
    axes = integers(node, "axes", 1)
    if node.op_type == "Squeeze":
        gone = [axis for axis, size in enumerate(old) if size == 1] if axes is None else [a % len(old) for a in axes]
        left = [axis for axis in range(len(old)) if axis not in gone]
        state.give(node, {at: masks[axis] for at, axis in enumerate(left) if axis in masks})
        return
    new = {axis % rank for axis in axes or ()}
    places = [at for at in range(rank) if at not in new]
    state.give(node, {places[axis]: mask for axis, mask in masks.items()})


@_moves
def _reduce(node: ir.Node, state: State, x: ir.Value, masks: Masks) -> None:
    rank = len(sizes(x, node))
    if node.op_type.startswith("Arg"):
        gone = [integer(node, "axis", 0) % rank]
        if gone[0] in masks:
            raise Unwritable(f"{place(node)}: positions are lost on the axis that it finds a place in")
    else:
        axes = integers(node, "axes", 1)
        if axes is None or not axes:
            axes = [] if integer(node, "noop_with_empty_axes", 0) else list(range(rank))
        gone = [axis % rank for axis in axes]
    left = list(range(rank)) if integer(node, "keepdims", 1) else [axis for axis in range(rank) if axis not in gone]
    state.give(node, {at: masks[axis] for at, axis in enumerate(left) if axis in masks and axis not in gone})


def _concat(node: ir.Node, state: State) -> None:
    if not state.reads(node):
        return
    rank = len(sizes(node.outputs[0], node))
    axis = integer(node, "axis", 0) % rank
    values = [value for value in node.inputs if value is not None]
    computed = [value for value in values if not value.is_initializer()] or values
    others: dict[int, Mask | None] = {
        at: first(state.of(value).get(at) for value in computed) for at in range(rank) if at != axis
    }
    for index in range(len(values)):
        state.need(node, index, others)
    found = {at: mask for at, mask in others.items() if mask is not None}
    if any(axis in state.of(value) for value in values):
        parts = []
        for value in values:
            size = sizes(value, node)[axis]
            if isinstance(size, str):
                raise Unwritable(f"{place(node)}: the size of {value.name!r} is not known")
            parts.append(state.of(value).get(axis, np.ones(size, dtype=bool)))
        found[axis] = np.concatenate(parts)
    state.give(node, found)


@_moves
def _split(node: ir.Node, state: State, x: ir.Value, masks: Masks) -> None:
    axis = integer(node, "axis", 0) % len(sizes(x, node))
    parts: list[Mask] = []
    if axis in masks:
        lengths = [int(sizes(output, node)[axis]) for output in node.outputs]
        parts = np.split(masks[axis], np.cumsum(lengths)[:-1])
        numbers = np.array([count(part) for part in parts], dtype=np.int64)
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            state.replace(node, 1, numbers)
        elif len({*numbers.tolist()}) > 1:
            node.attributes.pop("num_outputs", None)
            node.resize_inputs(2)
            state.replace(node, 1, numbers)
    for output in range(len(node.outputs)):
        state.give(node, {at: mask for at, mask in masks.items() if at != axis}, output)
        if parts:
            state.masks.setdefault(node.outputs[output], {})
            state.give(node, {**state.of(node.outputs[output]), axis: parts[output]}, output)


@_moves
def _slice(node: ir.Node, state: State, x: ir.Value, masks: Masks) -> None:
    out = dict(masks)
    rank = len(sizes(x, node))
    starts, ends = _bounds(node, 1, "starts"), _bounds(node, 2, "ends")
    axes = integers(node, "axes", 3) or list(range(len(starts or ends or ())))
    steps = integers(node, "steps", 4) or [1] * len(axes)
    numbers: dict[int, dict[int, int]] = {1: {}, 2: {}, 4: {}}
    for entry, axis in enumerate(each % rank for each in axes):
        if axis not in masks:
            continue
        if starts is None or ends is None:
            raise Unwritable(f"{place(node)}: its bounds are computed, on an axis that loses positions")
        taken = np.arange(masks[axis].size)[slice(*_python(starts[entry], ends[entry], steps[entry]))]
        bounds = _landed(masks[axis], taken, node)
        for operand, number in zip(numbers, bounds, strict=True):
            numbers[operand][entry] = number
        out[axis] = masks[axis][taken]
    for operand, new in numbers.items():
        if operand < len(node.inputs) and node.inputs[operand] is not None and new:
            old = array_of(node.inputs[operand])
            assert old is not None  # because its bounds are known
            changed = old.copy()
            for entry, number in new.items():
                changed[entry] = min(number, np.iinfo(old.dtype).max)
            state.replace(node, operand, changed)
        elif any(number != 1 for number in new.values()) and operand == 4:
            raise Unwritable(f"{place(node)}: what stays is not evenly spaced")
    state.give(node, out)


def _bounds(node: ir.Node, operand: int, name: str) -> list[int] | None:
    if name in node.attributes:
        raise Unwritable(f"{place(node)}: it is of an opset before 10; convert the file to a later one")
    found = array_of(node.inputs[operand])
    return None if found is None else [int(each) for each in found]


def _python(start: int, end: int, step: int) -> tuple[int, int | None, int]:
    """The bounds as Python's slices take them, where -1 is the last and not the place before the first."""
    return start, None if step < 0 and end < -(1 << 30) else end, step


def _landed(mask: Mask, taken: np.ndarray, node: ir.Node) -> tuple[int, int, int]:
    """Start, end and step that take what stays of the positions `taken`."""
    places = (np.cumsum(mask) - 1)[taken[mask[taken]]]
    if not places.size:
        raise Unwritable(f"{place(node)}: nothing would stay of what it takes")
    steps = np.unique(np.diff(places)) if places.size > 1 else np.ones(1, dtype=np.int64)
    if steps.size > 1:
        raise Unwritable(f"{place(node)}: what stays is not evenly spaced")
    step = int(steps[0])
    end = int(places[-1]) + (1 if step > 0 else -1)
    return int(places[0]), end if end >= 0 else -_END, step


def _gather(node: ir.Node, state: State) -> None:
    x, index = _operand(node), node.inputs[1]
    assert index is not None
    state.need(node, 0, {})
    if state.of(index):
        raise Unwritable(f"{place(node)}: its indices would lose positions")
    masks = state.of(x)
    if not masks:
        return
    axis = integer(node, "axis", 0) % len(sizes(x, node))
    more = len(sizes(index, node))
    found = {at if at < axis else at + more - 1: mask for at, mask in masks.items() if at != axis}
    if axis in masks:
        found |= _picked(node, state, masks[axis], axis, array_of(index))
    state.give(node, found)


def _picked(
    node: ir.Node, state: State, mask: Mask, axis: int, indices: np.ndarray | None
) -> dict[int, Mask]:
    """Rewrite constant indices into an axis that loses positions; the mask of the axis that they make."""
    if indices is None or indices.ndim > 1:
        raise Unwritable(f"{place(node)}: its indices are computed, into an axis that loses positions")
    known = np.where(indices < 0, indices + mask.size, indices)
    stays = mask[known]
    new = (np.cumsum(mask) - 1)[known]
    if indices.ndim == 0:
        if not stays:
            raise Unwritable(f"{place(node)}: the position that it takes would be lost")
        state.replace(node, 1, np.asarray(new, dtype=indices.dtype))
        return {}
    state.replace(node, 1, new[stays].astype(indices.dtype))
    return {axis: stays}


def _expand(node: ir.Node, state: State) -> None:
    x = _operand(node)
    copies = state.copies.get(node.outputs[0].name or "", {})
    masks = state.of(x)
    if not masks and not copies:
        state.need(node, 0, {})
        return
    old = sizes(x, node)
    shift = len(sizes(node.outputs[0], node)) - len(old)
    state.need(node, 0, {at - shift: mask for at, mask in copies.items() if at >= shift and old[at - shift] != 1})
    (length,) = sizes(node.inputs[1], node) if node.inputs[1] is not None else (0,)
    out = {axis + shift: mask for axis, mask in masks.items()} | dict(copies)
    if isinstance(length, str):
        raise Unwritable(f"{place(node)}: how many axes it is given is not known")
    # The operand may have more axes than it is expanded to.
    less = len(sizes(node.outputs[0], node)) - length
    written = array_of(node.inputs[1])
    numbers = {axis - less: count(mask) for axis, mask in out.items() if axis >= less}
    state.renumber(node, 1, {at: n for at, n in numbers.items() if written is None or written[at] != 1})
    state.give(node, out)


def _gather_nd(node: ir.Node, state: State) -> None:
    """Constant places in the first axes, each of which gives all of the axes that follow."""
    x, index = _operand(node), node.inputs[1]
    assert index is not None
    state.need(node, 0, {})
    if state.of(index) or (state.of(x) and integer(node, "batch_dims", 0)):
        raise Unwritable(f"{place(node)}: positions are lost where it takes places")
    masks = state.of(x)
    if not masks:
        return
    *more, taken = sizes(index, node)
    if isinstance(taken, str) or any(axis < taken for axis in masks):
        raise Unwritable(f"{place(node)}: positions are lost on an axis that it takes places of")
    state.give(node, {axis - taken + len(more): mask for axis, mask in masks.items()})


@_moves
def _tile(node: ir.Node, state: State, x: ir.Value, masks: Masks) -> None:
    repeats = array_of(node.inputs[1])
    if repeats is None:
        raise Unwritable(f"{place(node)}: how often it repeats is computed")
    state.give(node, {axis: np.tile(mask, int(repeats[axis])) for axis, mask in masks.items()})


def pads(node: ir.Node, rank: int) -> dict[int, tuple[int, int]]:
    """How many positions a pad adds before and after each axis. Raises Unwritable where that is computed."""
    given = integers(node, "pads", 1) or []
    axes = [axis % rank for axis in integers(node, "axes", 3) or range(rank)]
    found = dict.fromkeys(range(rank), (0, 0))
    return found | dict(zip(axes, zip(given, given[len(axes) :], strict=False), strict=False))


def _pad(node: ir.Node, state: State) -> None:
    x = _operand(node)
    state.need(node, 0, {})
    masks, wanted = state.of(x), state.copies.get(node.outputs[0].name or "", {})
    if not masks and not wanted:
        return
    rank = len(sizes(x, node))
    borders = pads(node, rank)
    axes = [axis % rank for axis in integers(node, "axes", 3) or range(rank)]
    numbers: dict[int, int] = {}
    out: dict[int, Mask] = {}
    for axis in masks.keys() | wanted.keys():
        before, after = borders[axis]
        size = sizes(x, node)[axis]
        if isinstance(size, str) or min(before, after) < 0:
            raise Unwritable(f"{place(node)}: positions are lost on an axis that it crops, or of unknown size")
        every = np.ones(before + size + after, dtype=bool)
        every[before : before + size] = masks.get(axis, True)
        out[axis] = every = wanted.get(axis, every)
        if before or after:
            numbers[axes.index(axis)] = count(every[:before])
            numbers[axes.index(axis) + len(axes)] = count(every[before + size :])
    if any(not same(out[axis][borders[axis][0] :][: masks[axis].size], masks[axis]) for axis in masks):
        raise Unwritable(f"{place(node)}: what it pads keeps other positions")
    old = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if numbers and old is None:
        raise Unwritable(f"{place(node)}: it is of an opset before 11; convert the file to a later one")
    if numbers and old is not None:
        changed = old.copy()
        changed[list(numbers)] = list(numbers.values())
        state.replace(node, 1, changed)
    state.give(node, out)


@_moves
def _resize(node: ir.Node, state: State, x: ir.Value, masks: Masks) -> None:
    old, new = sizes(x, node), sizes(node.outputs[0], node)
    if any(old[axis] != new[axis] for axis in masks):
        raise Unwritable(f"{place(node)}: an axis that loses positions is resized")
    axes = [axis % len(old) for axis in integers(node, "axes") or range(len(old))]
    state.renumber(node, 3, {axes.index(axis): count(mask) for axis, mask in masks.items() if axis in axes})
    state.give(node, masks)


def _depth_to_space(node: ir.Node, state: State) -> None:
    """Channels `(block block channels)`, or with the mode CRD `(channels block block)`, spread over the image."""
    channels = state.of(_operand(node)).get(1)
    state.need(node, 0, {})
    if channels is None:
        _unless_spread(node, state)
        return
    block = integer(node, "blocksize", 1)
    mode = node.attributes.get("mode")
    left = channels.size // block**2
    last = mode is None or mode.as_string() == "DCR"
    sizes_: Sequence[int] = (block, block, left) if last else (left, block, block)
    parts = factor(channels, sizes_)
    inner = parts.pop(-1 if last else 0)
    if not all(part.all() for part in parts):
        raise Unwritable(f"{place(node)}: some places of its blocks would be lost")
    state.give(node, {1: inner})


def _space_to_depth(node: ir.Node, state: State) -> None:
    channels = state.of(_operand(node)).get(1)
    state.need(node, 0, {})
    _unless_spread(node, state)
    if channels is not None:
        block = np.ones(integer(node, "blocksize", 1), dtype=bool)
        state.give(node, {1: merge([block, block, channels])})


def _unless_spread(node: ir.Node, state: State) -> None:
    if any(axis > 1 for axis in state.of(_operand(node))):
        raise Unwritable(f"{place(node)}: positions are lost on an axis that it takes blocks of")


RULES: dict[str, Callable[[ir.Node, State], None]] = {
    **dict.fromkeys(
        """ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare""".split(),
        _reduce,
    ),
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
}
