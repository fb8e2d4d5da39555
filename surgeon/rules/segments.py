"""Operators that join axes or take them apart: concatenation, splitting, slicing, padding, repetition."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import fx

from surgeon.ir.axes import ONE, Axis, concat, prod
from surgeon.ir.operators import operator_name
from surgeon.rules.base import Axes, Context, Kept, Printer, RuleDoesNotApply, Typed, rule, size_of, sizes_of, where
from surgeon.rules.reading import axis_at, number, numbers


@rule("cat", "concat", "concatenate")
def cat(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    operands = [axes for axes in map(c.of, a["tensors"]) if len(axes) == len(size_of(node))]
    dim = a["dim"] % len(size_of(node))
    out = list(operands[0])
    for axes in operands[1:]:
        for i, (axis, other) in enumerate(zip(out, axes, strict=True)):
            if i != dim:
                c.unify(axis, other, f"{where(node)}: the operands do not align")
    out[dim] = concat(axes[dim] for axes in operands)
    return Typed(tuple(out))


@rule("stack")
def stack(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    operands = [c.of(t) for t in a["tensors"]]
    out = list(operands[0])
    for axes in operands[1:]:
        for axis, other in zip(out, axes, strict=True):
            c.unify(axis, other, f"{where(node)}: the operands do not align")
    out.insert(a["dim"] % (len(out) + 1), concat([ONE] * len(operands)))
    return Typed(tuple(out))


# The axis along which each of these joins tensors; those of a lower rank get axes of size 1 first.
_JOINED = {"vstack": 0, "hstack": 1, "column_stack": 1, "dstack": 2}


@rule(*_JOINED)
def joined(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    dim = _JOINED[operator_name(node)]
    if min(len(c.of(t)) for t in a["tensors"]) > dim:
        return cat(node, {**a, "dim": dim}, c)
    for t in a["tensors"]:
        c.pin(c.of(t), f"{where(node)}: use cat, for which surgeon has a rule")
    return Typed(c.pinned(size_of(node), f"output of {where(node)}"))


@rule("split", "split_with_sizes", "chunk", "tensor_split.indices", "tensor_split.sections", "unsafe_split",
      "unsafe_chunk", "split_copy", "split_with_sizes_copy")
def split(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    dim = axis_at(a, x)
    sizes = [size[dim] for size in sizes_of(node)]
    parts = iter(c.space.cut(x[dim], list(accumulate(sizes))[:-1], f"{where(node)}: a split across units"))
    segments = [next(parts) if size else concat([]) for size in sizes]
    return Typed(
        [(*x[:dim], part, *x[dim + 1 :]) for part in segments],
        args={"split_sizes": lambda kept: [kept.width(part) for part in segments]},
        target=torch.ops.aten.split_with_sizes.default,
    )


def _segment(node: fx.Node, axis: Axis, start: int, stop: int, c: Context) -> tuple[Axis, Axis]:
    """The axes of the positions before `start`, and from `start` up to `stop`."""
    parts = iter(c.space.cut(axis, [start, stop], f"{where(node)}: a slice across units"))
    before = next(parts) if start else concat([])
    return before, next(parts) if stop > start else concat([])


@rule("slice", "narrow", "slice_copy")
def slice_(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    dim = axis_at(a, x)
    axis, size, step = x[dim], x[dim].size, a.get("step") or 1
    rest = lambda part: (*x[:dim], part, *x[dim + 1 :])  # noqa: E731
    if _are_computed(a):
        c.pin((axis,), f"{where(node)}: the bounds are computed")
        return Typed(rest(c.fresh(size_of(node)[dim], f"output of {where(node)}")))
    start, end = bounds(a, size)
    if step != 1:
        return _strided(node, x, dim, (start, end, a.get("end")), step, c)
    before, part = _segment(node, axis, start, end, c)
    if "length" in a:
        args: dict[str, Printer] = {
            "start": lambda k: k.width(before) if k.changed(axis) else a["start"],
            "length": lambda k: k.width(part) if k.changed(axis) else a["length"],
        }
        return Typed(rest(part), args=args)
    return Typed(rest(part), args=_ends(a, axis, before, part))


def _are_computed(a: dict[str, Any]) -> bool:
    return not all(isinstance(a.get(n), int | None) for n in ("start", "end", "length", "step"))


def bounds(a: Mapping[str, Any], size: int) -> tuple[int, int]:
    """The start and end of a slice of an axis of `size` positions, counted from the front."""
    start = a.get("start") or 0
    start = min(max(start + size if start < 0 else start, 0), size)
    end = start + a["length"] if "length" in a else a.get("end")
    end = size if end is None else end
    return start, max(start, min(max(end + size if end < 0 else end, 0), size))


def _strided(node: fx.Node, x: Axes, dim: int, places: tuple[int, int, Any], step: int, c: Context) -> Typed:
    """`places` are where to start and end, counted from the front, and the end as it is written."""
    axis, (start, end, written) = x[dim], places
    why = f"{where(node)}: every {step}th position is taken"
    if axis.size % step == 0 and start < step and end > axis.size - step + start:
        outer, inner = c.divide(axis, [axis.size // step, step], why)
        c.pin((inner,), why)
        args = {} if _open(written, axis) else {"end": lambda k: k.width(axis) if k.changed(axis) else written}
        return Typed((*x[:dim], outer, *x[dim + 1 :]), args=args)
    c.pin((axis,), why)
    return Typed((*x[:dim], c.fresh(size_of(node)[dim], why), *x[dim + 1 :]))


@rule("slice_scatter", "select_scatter")
def scatter(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """`src` replaces a slice, or one position, of `self`."""
    x, y = c.of(a["self"]), c.of(a["src"])
    dim = axis_at(a, x)
    why = f"{where(node)}: what is written does not align"
    if "index" in a:
        c.pin((x[dim],), f"{where(node)}: one position is written by its number")
        c.broadcast([(*x[:dim], *x[dim + 1 :]), y], why)
        return Typed(x)
    if _are_computed(a):
        raise RuleDoesNotApply("the bounds are computed")
    for i, (p, q) in enumerate(zip(x, y, strict=True)):
        if i != dim:
            c.unify(p, q, why)
    if (a.get("step") or 1) != 1:
        c.pin((x[dim], y[dim]), f"{where(node)}: strided positions are written")
        return Typed(x)
    before, part = _segment(node, x[dim], *bounds(a, x[dim].size), c)
    if part.size == y[dim].size:
        c.unify(part, y[dim], why)
    else:
        c.pin((x[dim], y[dim]), why)
    return Typed(x, args=_ends(a, x[dim], before, part))


def _ends(a: dict[str, Any], axis: Axis, before: Axis, part: Axis) -> dict[str, Printer]:
    """How the bounds of a slice are printed: as written where the axis does not change."""
    found: dict[str, Printer] = {"start": lambda k: k.width(before) if k.changed(axis) else a["start"]}
    if not _open(a.get("end"), axis):
        found["end"] = lambda k: k.width(before) + k.width(part) if k.changed(axis) else a["end"]
    return found


def _open(end: int | None, axis: Axis) -> bool:
    """Whether a slice goes on to the end, wherever that is: an axis of units and samples has as many as there are."""
    return end is None or end > axis.size


@rule("expand", "broadcast_to", "expand_copy", "expand_as")
def expand(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, sizes = c.of(a["self"]), size_of(node)
    old = (*[ONE] * (len(sizes) - len(x)), *x)
    if "other" in a:
        written: list[Any] = list(sizes)
    else:
        written = [*[None] * (len(sizes) - len(a["size"])), *a["size"]]
    out = tuple(
        axis if axis.size == size else c.sized(size, amount, f"{where(node)}: stretched to a computed size")
        for axis, size, amount in zip(old, sizes, written, strict=True)
    )
    if "other" in a:
        for axis, other in zip(out, c.of(a["other"]), strict=True):
            c.unify(axis, other, f"{where(node)}: the shapes do not align")
        return Typed(out)
    return Typed(out, args={"size": lambda kept: kept.sizes(out, a["size"])})


@rule("repeat", "tile")
def repeat(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """The whole axis, several times: the copies of a unit are removed together."""
    x = c.of(a["self"])
    name = "repeats" if "repeats" in a else "dims"
    times = a[name]
    offset = max(len(x) - len(times), 0)
    old = (*[ONE] * (len(times) - len(x)), *x)
    counts = [new // axis.size if axis.size else 1 for new, axis in zip(size_of(node), old, strict=True)]
    why = f"{where(node)}: repeated a computed number of times"
    copies = [c.sized(count, amount, why) for count, amount in zip(counts, [*[1] * offset, *times], strict=True)]
    out = tuple(prod([n, axis]) for n, axis in zip(copies, old, strict=True))
    return Typed(out, args={name: lambda kept: kept.sizes(copies[offset:], times)})


@rule("repeat_interleave.self_int")
def repeat_interleave(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    copies = c.fresh(number(a, "repeats"))
    dim = axis_at(a, x) if a["dim"] is not None else None
    repeated = prod([*x, copies]) if dim is None else prod([x[dim], copies])
    args = {
        "repeats": lambda kept: kept.width(copies),
        "output_size": lambda kept: None if kept.changed(repeated) else a["output_size"],
    }
    return Typed((repeated,) if dim is None else (*x[:dim], repeated, *x[dim + 1 :]), args=args)


@rule("repeat_interleave.self_Tensor")
def repeat_each(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Each position has its own number of repetitions: no position of that axis may be removed."""
    x = c.of(a["self"])
    why = f"{where(node)}: every position has a number of repetitions of its own"
    dim = axis_at(a, x) if a["dim"] is not None else None
    c.pin((*(x if dim is None else (x[dim],)), *c.of(a["repeats"])), why)
    repeated = c.fresh(size_of(node)[dim or 0], why)
    return Typed((repeated,) if dim is None else (*x[:dim], repeated, *x[dim + 1 :]))


@rule("roll")
def roll(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = list(c.of(a["self"]))
    if not a["dims"]:
        c.pin(x, f"{where(node)}: rolled over the flattened tensor")
        return Typed(tuple(x))
    amounts: list[tuple[Axis, Axis, int]] = []
    for shift, dim in zip(numbers(a, "shifts"), a["dims"], strict=True):
        axis, rolled = x[dim], concat([])
        if axis.size and shift % axis.size:
            left, rolled = c.space.cut(axis, [-shift % axis.size], f"{where(node)}: rolled across units")
            x[dim] = concat([rolled, left])
        amounts.append((rolled, axis, shift))

    def shifts(kept: Kept) -> list[int]:
        return [kept.width(rolled) if kept.changed(axis) else shift for rolled, axis, shift in amounts]

    return Typed(tuple(x), args={"shifts": shifts})


@rule("flip", "fliplr", "flipud", "rot90")
def flip(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    some = "dims" in a and operator_name(node) != "rot90"
    c.pin([x[d] for d in a["dims"]] if some else x, f"{where(node)}: the order of the units is reversed")
    return Typed(x if some else c.pinned(size_of(node), f"output of {where(node)}"))


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
      "replication_pad2d", "replication_pad3d", "_pad_circular")
def pad(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Constant padding adds units that no parameter computes; other modes read neighbors, which pins the axis."""
    x = list(c.of(a["self"]))
    sizes = size_of(node)
    name = "padding" if "padding" in a else "pad"
    amounts = list(a[name])
    constant = a.get("mode", "constant") == "constant" and operator_name(node) in ("pad", "constant_pad_nd")
    printed: dict[int, Axis] = {}
    for i in range(0, len(amounts), 2):
        dim = len(x) - 1 - i // 2
        left, right = amounts[i : i + 2]
        if not (isinstance(left, int) and isinstance(right, int)) or not constant or left < 0 or right < 0:
            if left == right == 0:
                continue
            c.pin((x[dim],), f"{where(node)}: padded by its neighbors, cropped, or by a computed amount")
            x[dim] = c.fresh(sizes[dim], f"output of {where(node)}")
            continue
        printed[i], printed[i + 1] = (c.fresh(n) if n else concat([]) for n in (left, right))
        if left or right:
            x[dim] = concat([printed[i], x[dim], printed[i + 1]])

    def new(kept: Kept) -> list[Any]:
        return [kept.width(printed[i]) if i in printed else amount for i, amount in enumerate(amounts)]

    return Typed(tuple(x), args={name: new})
