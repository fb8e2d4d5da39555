"""Operators that only move data: reshapes, transpositions, shuffles and windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from surgeon.ir.axes import ONE, Axis, prod
from surgeon.ir.operators import operator_name
from surgeon.rules.base import Axes, Context, Kept, RuleDoesNotApply, Typed, dims, rule, size_of, sizes_of, where
from surgeon.rules.reading import axis_at, number, numbers


def regroup(node: fx.Node, axes: Axes, sizes: Sequence[int], c: Context) -> Axes:
    """`axes` viewed with new `sizes`: both shapes are cut into minimal chunks of equal size, which are matched."""
    out: list[Axis] = []
    old = list(axes)
    new = list(sizes)
    while old or new:
        chunk, want = ([old.pop(0)] if old else []), ([new.pop(0)] if new else [])
        have_size, want_size = math.prod(a.size for a in chunk), math.prod(want)
        while have_size != want_size:
            if not (old if have_size < want_size else new):
                raise RuleDoesNotApply("a tensor without elements")
            if have_size < want_size:
                chunk.append(old.pop(0))
                have_size *= chunk[-1].size
            else:
                want.append(new.pop(0))
                want_size *= want[-1]
        if len(chunk) == len(want) == 1:
            out += chunk
        else:
            out += c.divide(prod(chunk), want, f"{where(node)}: a reshape that cuts across units")
    return tuple(out)


@rule("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias")
def view(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    if "dtype" in a:
        return Typed(c.of(a["self"]))
    out = regroup(node, c.of(a["self"]), size_of(node), c)
    name = "shape" if "shape" in a else "size"
    fixed = [isinstance(size, int) for size in node.meta["val"].shape]

    def sizes(kept: Kept) -> list[Any]:
        new = kept.sizes(out, a[name])
        if sum(isinstance(size, int) and size < 0 for size in new) > 1:
            new = [kept.width(axis) if known else size for axis, size, known in zip(out, new, fixed, strict=True)]
        return new

    return Typed(out, args={name: sizes})


@rule("flatten", "view_as", "reshape_as", "ravel")
def flatten(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    return Typed(regroup(node, c.of(a["self"]), size_of(node), c))


@rule("unflatten")
def unflatten(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    out = regroup(node, x, size_of(node), c)
    dim = axis_at(a, x)
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
    whole = operator_name(node) == "numpy_T"
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
    over = dims(a.get("dim"), len(x))
    return Typed(tuple(axis for i, axis in enumerate(x) if i not in over or axis.size != 1))


@rule("unsqueeze", "unsqueeze_copy")
def unsqueeze(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = list(c.of(a["self"]))
    x.insert(a["dim"] % (len(x) + 1), ONE)
    return Typed(tuple(x))


@rule("unbind", "unbind_copy")
def unbind(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    dim = axis_at(a, x)
    c.pin((x[dim],), f"{where(node)}: every position is taken apart by its number")
    return Typed([(*x[:dim], *x[dim + 1 :])] * x[dim].size)


@rule("select", "select_copy")
def select(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    dim = axis_at(a, x)
    c.pin((x[dim],), f"{where(node)}: one position is taken by its number")
    return Typed((*x[:dim], *x[dim + 1 :]))


@rule("pixel_shuffle")
def pixel_shuffle(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """(…, C·r·r, H, W) -> (…, C, H·r, W·r)."""
    x, r = c.of(a["self"]), number(a, "upscale_factor")
    channel, block = c.divide(x[-3], [x[-3].size // (r * r), r * r], f"{where(node)}: blocks")
    c.pin((block, *x[-2:]), f"{where(node)}: positions within a block")
    return Typed((*x[:-3], channel, *c.pinned(size_of(node)[-2:], f"{where(node)}: spatial axis")))


@rule("pixel_unshuffle")
def pixel_unshuffle(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """(…, C, H·r, W·r) -> (…, C·r·r, H, W)."""
    x, r = c.of(a["self"]), number(a, "downscale_factor")
    c.pin(x[-2:], f"{where(node)}: spatial axis")
    block = c.fresh(r * r, f"{where(node)}: positions within a block")
    return Typed((*x[:-3], prod([x[-3], block]), *c.pinned(size_of(node)[-2:], f"{where(node)}: spatial axis")))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, groups = list(c.of(a["self"])), number(a, "groups")
    why = f"{where(node)}: shuffled groups"
    group, inner = c.divide(x[1], [groups, x[1].size // groups], why)
    c.pin((group,), why)
    x[1] = prod([inner, group])
    return Typed(tuple(x))


@rule("unfold")
def unfold(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Windows along one axis, which become a new last axis."""
    x = list(c.of(a["self"]))
    dim = axis_at(a, x, "dimension")
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
    window = math.prod(numbers(a, "kernel_size"))
    if operator_name(node) == "im2col":
        c.pin(x[-2:], why)
        return Typed((*x[:-3], prod([x[-3], c.fresh(window, why)]), c.fresh(sizes[-1], why)))
    channel, inner = c.divide(x[-2], [x[-2].size // window, window], why)
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
    why = f"{where(node)}: depends on positions"
    c.pin(x, why)
    return Typed(x if size_of(node) == tuple(v.size for v in x) else c.pinned(size_of(node), why))
