"""Operators that only move data: reshapes, transpositions, concatenation, slicing, repetition, shuffles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from surgeon.axes import ONE, Axis, concat, prod
from surgeon.rules.base import Axes, Context, Kept, Typed, rule, size_of, sizes_of, where


def regroup(node: fx.Node, axes: Axes, sizes: Sequence[int], c: Context) -> Axes:
    """`axes` viewed with new `sizes`: both shapes are cut into minimal chunks of equal size, chunk by chunk."""
    out: list[Axis] = []
    old = list(axes)
    new = list(sizes)
    while old or new:
        chunk, want = ([old.pop(0)] if old else []), ([new.pop(0)] if new else [])
        have_size, want_size = math.prod(a.size for a in chunk), math.prod(want)
        while have_size != want_size:
            if have_size < want_size:
                chunk.append(old.pop(0))
                have_size *= chunk[-1].size
            else:
                want.append(new.pop(0))
                want_size *= want[-1]
        if len(chunk) == len(want) == 1:
            out += chunk
        else:
            out += c.space.divide(prod(chunk), want, f"{where(node)}: a reshape that cuts across units")
    return tuple(out)


@rule("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias")
def view(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    if "dtype" in str(node.target):
        return Typed(c.of(a["self"]))
    out = regroup(node, c.of(a["self"]), size_of(node), c)
    name = "shape" if "shape" in a else "size"
    return Typed(out, args={name: lambda kept: kept.sizes(out, a[name])})


@rule("flatten", "view_as", "reshape_as", "ravel")
def flatten(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    return Typed(regroup(node, c.of(a["self"]), size_of(node), c))


@rule("unflatten")
def unflatten(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    out = regroup(node, x, size_of(node), c)
    dim = a["dim"] % len(x)
    new = out[dim : dim + len(a["sizes"])]
    return Typed(out, args={"sizes": lambda kept: kept.sizes(new, a["sizes"])})


@rule("permute", "permute_copy")
def permute(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    return Typed(tuple(x[d] for d in a["dims"]))


@rule("transpose", "swapaxes", "swapdims")
def transpose(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = list(c.of(a["self"]))
    if x:
        i, j = (a[n] for n in (("dim0", "dim1") if "dim0" in a else ("axis0", "axis1")))
        x[i], x[j] = x[j], x[i]
    return Typed(tuple(x))


@rule("t", "numpy_T", "mT", "adjoint")
def t(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    whole = "numpy_T" in str(node.target)
    return Typed(x[::-1] if whole or len(x) < 2 else (*x[:-2], x[-1], x[-2]))


@rule("movedim", "moveaxis")
def movedim(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    sources, targets = ([v] if isinstance(v, int) else list(v) for v in (a["source"], a["destination"]))
    moved = {d % len(x): s % len(x) for s, d in zip(sources, targets, strict=True)}
    rest = iter([i for i in range(len(x)) if i not in moved.values()])
    return Typed(tuple(x[moved[i]] if i in moved else x[next(rest)] for i in range(len(x))))


@rule("squeeze", "squeeze_copy")
def squeeze(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    dim = a.get("dim")
    over = range(len(x)) if dim is None else [d % len(x) for d in ([dim] if isinstance(dim, int) else dim)]
    return Typed(tuple(axis for i, axis in enumerate(x) if i not in over or axis.size != 1))


@rule("unsqueeze", "unsqueeze_copy")
def unsqueeze(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = list(c.of(a["self"]))
    x.insert(a["dim"] % (len(x) + 1), ONE)
    return Typed(tuple(x))


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


@rule("stack", "hstack", "vstack", "column_stack", "dstack")
def stack(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    operands = [c.of(t) for t in a["tensors"]]
    if "aten.stack." not in str(node.target):
        for axes in operands:
            c.pin(axes, f"{where(node)}: use cat, for which surgeon has a rule")
        return Typed(c.pinned(size_of(node), f"output of {where(node)}"))
    out = list(operands[0])
    for axes in operands[1:]:
        for axis, other in zip(out, axes, strict=True):
            c.unify(axis, other, f"{where(node)}: the operands do not align")
    out.insert(a["dim"] % (len(out) + 1), concat([ONE] * len(operands)))
    return Typed(tuple(out))


@rule("split", "split_with_sizes", "chunk", "tensor_split.indices", "tensor_split.sections", "unsafe_split",
      "unsafe_chunk", "split_copy", "split_with_sizes_copy")
def split(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    dim = a["dim"] % len(x)
    sizes = [size[dim] for size in sizes_of(node)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    parts = iter(c.space.cut(x[dim], ends[:-1], f"{where(node)}: a split across units"))
    segments = [next(parts) if size else concat([]) for size in sizes]

    def split_sizes(kept: Kept) -> list[int]:
        return [kept.width(part) for part in segments]

    return Typed(
        [(*x[:dim], part, *x[dim + 1 :]) for part in segments],
        args={"split_sizes": split_sizes},
        target=torch.ops.aten.split_with_sizes.default,
    )


@rule("unbind", "unbind_copy")
def unbind(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    dim = a["dim"] % len(x)
    c.pin((x[dim],), f"{where(node)}: every position is taken apart by its number")
    rest = (*x[:dim], *x[dim + 1 :])
    return Typed([rest] * x[dim].size)


@rule("select", "select_copy")
def select(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    dim = a["dim"] % len(x)
    c.pin((x[dim],), f"{where(node)}: one position is taken by its number")
    return Typed((*x[:dim], *x[dim + 1 :]))


def _segment(node: fx.Node, axis: Axis, start: int, stop: int, c: Context) -> tuple[Axis, Axis]:
    """The axes of the positions before `start`, and from `start` up to `stop`."""
    parts = iter(c.space.cut(axis, [start, stop], f"{where(node)}: a slice across units"))
    before = next(parts) if start else concat([])
    return before, next(parts) if stop > start else concat([])


@rule("slice", "narrow", "slice_copy")
def slice_(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    dim = (a["dim"] or 0) % len(x)
    axis, size, step = x[dim], x[dim].size, a.get("step") or 1
    rest = lambda part: (*x[:dim], part, *x[dim + 1 :])  # noqa: E731
    if not all(isinstance(a.get(n), int | None) for n in ("start", "end", "length")):
        c.pin((axis,), f"{where(node)}: the bounds are computed")
        return Typed(rest(c.fresh(size_of(node)[dim], f"output of {where(node)}")))
    start, end = _bounds(a, size)
    if step != 1:
        return _strided(node, x, dim, start, end, step, c)
    before, part = _segment(node, axis, start, end, c)
    if "length" in a:
        args = {"start": lambda k: k.width(before), "length": lambda k: k.width(part)}
    else:
        args = {
            "start": lambda k: k.width(before) if k.changed(axis) else a["start"],
            "end": lambda k: k.width(before) + k.width(part) if k.changed(axis) else a["end"],
        }
    return Typed(rest(part), args=args)


def _bounds(a: dict[str, Any], size: int) -> tuple[int, int]:
    start = a.get("start") or 0
    start = min(max(start + size if start < 0 else start, 0), size)
    end = start + a["length"] if "length" in a else a.get("end")
    end = size if end is None else end
    return start, max(start, min(max(end + size if end < 0 else end, 0), size))


def _strided(node: fx.Node, x: Axes, dim: int, start: int, end: int, step: int, c: Context) -> Typed:
    axis = x[dim]
    why = f"{where(node)}: every {step}th position is taken"
    if axis.size % step == 0 and start < step and end > axis.size - step + start:
        outer, inner = c.space.divide(axis, [axis.size // step, step], why)
        c.pin((inner,), why)
        return Typed((*x[:dim], outer, *x[dim + 1 :]), args={"end": lambda k: k.width(axis)})
    c.pin((axis,), why)
    return Typed((*x[:dim], c.fresh(size_of(node)[dim], why), *x[dim + 1 :]))


@rule("slice_scatter", "select_scatter")
def scatter(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """`src` replaces a slice, or one position, of `self`."""
    x, y = c.of(a["self"]), c.of(a["src"])
    dim = (a["dim"] or 0) % len(x)
    why = f"{where(node)}: what is written does not align"
    if "index" in a:
        c.pin((x[dim],), f"{where(node)}: one position is written by its number")
        c.broadcast([(*x[:dim], *x[dim + 1 :]), y], why)
        return Typed(x)
    others = [(p, q) for i, (p, q) in enumerate(zip(x, y, strict=True)) if i != dim]
    for p, q in others:
        c.unify(p, q, why)
    if (a.get("step") or 1) != 1:
        c.pin((x[dim], y[dim]), f"{where(node)}: strided positions are written")
        return Typed(x)
    start, end = _bounds(a, x[dim].size)
    before, part = _segment(node, x[dim], start, end, c)
    if part.size == y[dim].size:
        c.unify(part, y[dim], why)
    else:
        c.pin((x[dim], y[dim]), why)
    changed = x[dim]
    return Typed(x, args={
        "start": lambda k: k.width(before) if k.changed(changed) else a["start"],
        "end": lambda k: k.width(before) + k.width(part) if k.changed(changed) else a["end"],
    })


@rule("expand", "broadcast_to", "expand_copy", "expand_as")
def expand(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, sizes = c.of(a["self"]), size_of(node)
    old = (*[ONE] * (len(sizes) - len(x)), *x)
    out = tuple(axis if axis.size == size else c.fresh(size) for axis, size in zip(old, sizes, strict=True))
    if "other" in a:
        for axis, other in zip(out, c.of(a["other"]), strict=True):
            c.unify(axis, other, f"{where(node)}: the shapes do not align")
        return Typed(out)
    return Typed(out, args={"size": lambda kept: kept.sizes(out, a["size"])})


@rule("repeat", "tile")
def repeat(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """The whole axis, several times over: its units are repeated and die together."""
    x = c.of(a["self"])
    times = a["repeats"] if "repeats" in a else a["dims"]
    rank = max(len(x), len(times))
    old = (*[ONE] * (rank - len(x)), *x)
    counts = [new // axis.size if axis.size else 1 for new, axis in zip(size_of(node), old, strict=True)]
    copies = [c.fresh(count) for count in counts]
    out = tuple(prod([n, axis]) for n, axis in zip(copies, old, strict=True))
    offset = rank - len(times)
    name = "repeats" if "repeats" in a else "dims"
    return Typed(out, args={name: lambda kept: kept.sizes(copies[offset:], times)})


@rule("repeat_interleave.self_int")
def repeat_interleave(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    copies = c.fresh(a["repeats"])
    if a["dim"] is None:
        return Typed((prod([*x, copies]),), args={"repeats": lambda kept: kept.width(copies)})
    dim = a["dim"] % len(x)
    out = (*x[:dim], prod([x[dim], copies]), *x[dim + 1 :])
    return Typed(out, args={"repeats": lambda kept: kept.width(copies)})


@rule("roll")
def roll(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = list(c.of(a["self"]))
    if not a["dims"]:
        c.pin(x, f"{where(node)}: rolled over the flattened tensor")
        return Typed(tuple(x))
    amounts: list[tuple[Axis, Axis]] = []
    for shift, dim in zip(a["shifts"], a["dims"], strict=True):
        axis = x[dim]
        point = -shift % axis.size
        if point == 0:
            amounts.append((concat([]), axis))
            continue
        left, right = c.space.cut(axis, [point], f"{where(node)}: rolled across units")
        x[dim] = concat([right, left])
        amounts.append((right, axis))
    old = a["shifts"]

    def shifts(kept: Kept) -> list[int]:
        return [kept.width(right) if kept.changed(axis) else shift
                for (right, axis), shift in zip(amounts, old, strict=True)]

    return Typed(tuple(x), args={"shifts": shifts})


@rule("flip", "fliplr", "flipud", "rot90")
def flip(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    if "dims" in a and "rot90" not in str(node.target):
        c.pin([x[d] for d in a["dims"]], f"{where(node)}: the order of the units is reversed")
        return Typed(x)
    c.pin(x, f"{where(node)}: the order of the units is reversed")
    return Typed(c.pinned(size_of(node), f"output of {where(node)}"))


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
      "replication_pad2d", "replication_pad3d", "_pad_circular")
def pad(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Constant padding adds units that no parameter computes; the other modes read neighbours, and so pin."""
    x = list(c.of(a["self"]))
    sizes = size_of(node)
    amounts = list(a["padding" if "padding" in a else "pad"])
    constant = a.get("mode", "constant") == "constant" and "flection" not in str(node.target) \
        and "replication" not in str(node.target) and "circular" not in str(node.target)
    printed: list[tuple[int, Axis]] = []
    for i in range(0, len(amounts), 2):
        dim = len(x) - 1 - i // 2
        left, right = amounts[i], amounts[i + 1]
        if not (isinstance(left, int) and isinstance(right, int)) or not constant or left < 0 or right < 0:
            if left == right == 0:
                continue
            c.pin((x[dim],), f"{where(node)}: padded by its neighbours, cropped, or by a computed amount")
            x[dim] = c.fresh(sizes[dim], f"output of {where(node)}")
            continue
        ends = [c.fresh(n) if n else concat([]) for n in (left, right)]
        printed += [(i, ends[0]), (i + 1, ends[1])]
        if left or right:
            x[dim] = concat([ends[0], x[dim], ends[1]])
    name = "padding" if "padding" in a else "pad"

    def new(kept: Kept) -> list[Any]:
        values = list(amounts)
        for index, axis in printed:
            values[index] = kept.width(axis)
        return values

    return Typed(tuple(x), args={name: new})


@rule("pixel_shuffle")
def pixel_shuffle(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """(…, C·r·r, H, W) -> (…, C, H·r, W·r)."""
    x, r = c.of(a["self"]), a["upscale_factor"]
    channel, block = c.space.divide(x[-3], [x[-3].size // (r * r), r * r], f"{where(node)}: blocks")
    c.pin((block, *x[-2:]), f"{where(node)}: positions within a block")
    return Typed((*x[:-3], channel, *c.pinned(size_of(node)[-2:], f"{where(node)}: spatial axis")))


@rule("pixel_unshuffle")
def pixel_unshuffle(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """(…, C, H·r, W·r) -> (…, C·r·r, H, W)."""
    x, r = c.of(a["self"]), a["downscale_factor"]
    c.pin(x[-2:], f"{where(node)}: spatial axis")
    block = c.fresh(r * r, f"{where(node)}: positions within a block")
    return Typed((*x[:-3], prod([x[-3], block]), *c.pinned(size_of(node)[-2:], f"{where(node)}: spatial axis")))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, groups = list(c.of(a["self"])), a["groups"]
    why = f"{where(node)}: shuffled groups"
    group, inner = c.space.divide(x[1], [groups, x[1].size // groups], why)
    c.pin((group,), why)
    x[1] = prod([inner, group])
    return Typed(tuple(x))


@rule("unfold")
def unfold(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Windows along one axis, which become a new last axis."""
    x = list(c.of(a["self"]))
    dim = a["dimension"] % len(x)
    why = f"{where(node)}: sliding windows"
    c.pin((x[dim],), why)
    sizes = size_of(node)
    x[dim] = c.fresh(sizes[dim], why)
    return Typed((*x, c.fresh(sizes[-1], why)))


@rule("im2col", "col2im")
def im2col(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """im2col: (N, C, H, W) -> (N, C·kh·kw, L); col2im goes the other way."""
    x = c.of(a["self"])
    why = f"{where(node)}: sliding windows"
    sizes = size_of(node)
    window = math.prod(a["kernel_size"])
    if "im2col" in str(node.target):
        c.pin(x[-2:], why)
        return Typed((*x[:-3], prod([x[-3], c.fresh(window, why)]), c.fresh(sizes[-1], why)))
    channel, inner = c.space.divide(x[-2], [x[-2].size // window, window], why)
    c.pin((inner, x[-1]), why)
    return Typed((*x[:-2], channel, *c.pinned(sizes[-2:], why)))


@rule("meshgrid", "broadcast_tensors")
def meshgrid(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    for value in a["tensors"]:
        c.pin(c.of(value), f"{where(node)}: positions")
    return Typed([c.pinned(size, f"{where(node)}: positions") for size in sizes_of(node)])


@rule("triu", "tril", "diagonal", "diag", "diag_embed")
def triangle(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    c.pin(x, f"{where(node)}: depends on positions")
    return Typed(x if size_of(node) == tuple(v.size for v in x) else c.pinned(size_of(node), where(node)))
