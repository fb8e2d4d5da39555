"""Operators that read or write positions by number, and those that create tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from surgeon.ir.axes import ONE
from surgeon.ir.operators import operator_name
from surgeon.rules.base import Axes, Context, RuleDoesNotApply, Typed, dims, rule, size_of, sizes_of, where
from surgeon.rules.reading import axis_at


@rule("embedding")
def embedding(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    w, index = c.of(a["weight"]), c.of(a["indices"])
    c.pin((w[0],), f"{where(node)}: rows are looked up by number")
    return Typed((*index, *w[1:]))


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Rows of a weight (rows, D), looked up and reduced in bags; the first result is (bags, D)."""
    w = c.of(a["weight"])
    why = f"{where(node)}: rows are looked up by number"
    c.pin((w[0], *c.of(a["indices"]), *c.of(a["offsets"]), *c.of(a["per_sample_weights"])), why)
    bags, *others = sizes_of(node)
    return Typed([(c.fresh(bags[0], why), w[1]), *(c.pinned(size, why) for size in others)])


@rule("index", "_unsafe_index")
def index(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Advanced indexing: the indexed axes are replaced by the broadcast axes of the indices."""
    return Typed(_indexed(c.of(a["self"]), list(a["indices"]), size_of(node), f"{where(node)}: positions are read", c))


def _indexed(x: Axes, indices: list[Any], sizes: tuple[int, ...] | None, action: str, c: Context) -> Axes:
    """The axes of `x[indices]`; `sizes` are its sizes, where they are known."""
    why = f"{action} by number"
    masks = [i for i in indices if _is_mask(i)]
    at = [d for d, i in enumerate(indices) if i is not None]
    if masks:
        before, mask = at[0], c.of(masks[0])
        if len(at) > 1:
            c.pin(x, why)
            return c.pinned(sizes or (), why)
        c.pin((*x[before : before + len(mask)], *mask), why)
        chosen = c.pinned(sizes[before : before + 1], why) if sizes is not None else (ONE,)
        return (*x[:before], *chosen, *x[before + len(mask) :])
    c.pin([x[d] for d in at], why)
    looked_up = c.broadcast([c.of(indices[d]) for d in at], why)
    adjacent = at == list(range(at[0], at[-1] + 1))
    kept = [axis for d, axis in enumerate(x) if d not in at]
    place = at[0] if adjacent else 0
    return (*kept[:place], *looked_up, *kept[place:])


def _is_mask(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value is not None and value.dtype in (torch.bool, torch.uint8)


@rule("index_select", "index_add", "index_copy")
def index_select(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = list(c.of(a["self"]))
    dim = axis_at(a, x)
    why = f"{where(node)}: positions are read by number"
    c.pin((x[dim], *c.of(a["index"])), why)
    if a.get("source") is not None:
        source = c.of(a["source"])
        if len(source) != len(x):
            raise RuleDoesNotApply("a source of another rank")
        c.broadcast([tuple(x[:dim] + x[dim + 1 :]), (*source[:dim], *source[dim + 1 :])], why)
        c.pin((source[dim],), why)
        return Typed(tuple(x))
    x[dim] = c.of(a["index"])[0] if c.of(a["index"]) else x[dim]
    return Typed(tuple(x))


@rule("gather", "take_along_dim", "scatter", "scatter_add", "scatter_reduce")
def gather(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, i = c.of(a["self"]), c.of(a.get("index", a.get("indices")))
    why = f"{where(node)}: positions are read or written by number"
    dim = axis_at(a, x) if a["dim"] is not None else None
    for axes in (i, *([c.of(a["src"])] if isinstance(a.get("src"), fx.Node) else [])):
        for d, (axis, other) in enumerate(zip(x, axes, strict=False)):
            if d == dim or axis.size != other.size:
                c.pin((axis, other), why)
            else:
                c.unify(axis, other, why)
    reads = operator_name(node) in ("gather", "take_along_dim")
    return Typed(i if reads else x)


@rule("index_put", "_unsafe_index_put")
def index_put(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """The values are broadcast to `self[indices]`; axes that are not indexed pass through."""
    x, values = c.of(a["self"]), c.of(a["values"])
    action = f"{where(node)}: positions are written"
    indices = [i for i in a["indices"] if i is not None]
    for i in indices:
        c.pin(c.of(i), f"{action} by number")
    if any(map(_is_mask, indices)) and len(indices) > 1:
        c.pin((*x, *values), f"{action} by number")
        return Typed(x)
    place = _indexed(x, list(a["indices"]), None, action, c)
    for axis, value in zip(reversed(place), reversed(values), strict=False):
        if axis.size == value.size:
            c.unify(axis, value, f"{action}: what is written does not align")
        else:
            c.pin((value,), f"{action} by number")
    return Typed(x)


@rule("topk", "sort", "sort.stable", "kthvalue")
def ordered(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = list(c.of(a["self"]))
    why = f"{where(node)}: positions along the axis are ordered by value"
    dim = axis_at(a, x)
    c.pin((x[dim],), why)
    x[dim] = c.fresh(sizes_of(node)[0][dim], why)
    return Typed([tuple(x), tuple(x)])


@rule("argmax", "argmin", "argsort", "argsort.stable", "msort")
def positions(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    over = dims(a.get("dim"), len(x))
    c.pin([x[d] for d in over], f"{where(node)}: positions along the axis are returned")
    if len(size_of(node)) == len(x):
        return Typed(tuple(c.fresh(s) if s != axis.size else axis for axis, s in zip(x, size_of(node), strict=True)))
    return Typed(tuple(axis for d, axis in enumerate(x) if d not in over))


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "empty.memory_format", "rand",
      "randn")
def uniform(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """A tensor whose elements don't depend on their position: its units can be removed with those that they meet."""
    why = f"{where(node)}: a computed size"
    axes = tuple(c.sized(size, amount, why) for size, amount in zip(size_of(node), a["size"], strict=True))
    return Typed(axes, args={"size": lambda kept: kept.sizes(axes, a["size"])})


@rule("arange", "linspace", "eye", "scalar_tensor", "one_hot", "randperm", "tril_indices", "triu_indices", "bucketize",
      "searchsorted", "nonzero", "repeat_interleave.Tensor", "masked_select", "hann_window", "fft_fftfreq",
      "unique_consecutive", "bincount")
def numbered(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """A tensor whose elements depend on their position, or on values: no position may be removed."""
    why = f"{where(node)}: values that depend on the position"
    for value in a.values():
        c.pin(c.of(value), why)
    return Typed(c.pinned(size_of(node), why))


@rule("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "_assert_async", "sym_size",
      "item", "_local_scalar_dense")
def effect_free(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Computes no tensor. An assertion about metadata still holds: it is dropped when the graph is rewritten."""
    if operator_name(node) in ("item", "_local_scalar_dense"):
        c.pin(c.of(a["self"]), f"{where(node)}: a value is read")
    return Typed(())
