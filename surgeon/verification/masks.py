"""Which positions of a value are removed: zeros there, or the kept ones alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.groups.coupling import Groups
from surgeon.groups.gains import erasable, rescaled
from surgeon.groups.interpreter import Interpreter
from surgeon.ir.axes import Axis
from surgeon.rules import Axes, Kept


def removed(kept: Kept, axis: Axis, value: Tensor, dim: int) -> Tensor:
    """The positions of `axis` that are gone of a value that has it as its axis `dim`."""
    gone = torch.ones(value.shape[dim], dtype=torch.bool)
    gone[torch.as_tensor(kept.positions_among(axis, value.shape[dim]))] = False
    return gone.nonzero().flatten().to(value.device)


def masked(groups: Groups, kept: Kept, node: fx.Node, value: Any, run: Interpreter | None = None) -> Any:
    """`value` with zeros at the removed positions of each of its axes.

    A tensor that `run` has just computed is written into, unless it is in the memory of an operand.
    """
    axes = groups.axes[node]
    if isinstance(value, Tensor):
        own = run is not None and node.op == "call_function" and _apart(value, run.operands(node).values())
        return with_zeros(value, axes, kept, own) if isinstance(axes, tuple) else value
    if isinstance(value, tuple | list) and isinstance(axes, list):
        pairs = zip(value, axes, strict=False)
        return [with_zeros(v, a, kept) if isinstance(v, Tensor) else v for v, a in pairs]
    return value


def is_masked(groups: Groups, kept: Kept, node: fx.Node, value: Any) -> bool:
    """Whether `value` has zeros at the removed positions of each of its axes as it is."""
    axes = groups.axes[node]
    return isinstance(value, Tensor) and isinstance(axes, tuple) and not any(
        kept.changed(axis) and value.index_select(dim, removed(kept, axis, value, dim)).any()
        for dim, axis in enumerate(axes)
    )


def _apart(value: Tensor, others: Iterable[Any]) -> bool:
    """Whether no part of a tensor stands twice in its memory, and none of `others` is in it."""
    memory = value.untyped_storage().data_ptr()
    tensors = [other for other in pytree.tree_leaves(list(others)) if isinstance(other, Tensor)]
    return value.is_contiguous() and all(other.untyped_storage().data_ptr() != memory for other in tensors)


def with_zeros(value: Tensor, axes: Axes, kept: Kept, own: bool = False) -> Tensor:
    """`value` with zeros at the removed positions; written into it if it is `own`, else into a copy."""
    for dim, axis in enumerate(axes):
        if kept.changed(axis):
            gone = removed(kept, axis, value, dim)
            value = value.index_fill_(dim, gone, 0) if own else value.index_fill(dim, gone, 0)
            own = True
    return value


def without_removed(groups: Groups, kept: Kept, parameters_only: bool = False) -> Callable[[str, Tensor], Tensor]:
    """What gives each tensor of the model, by name, as it is without the removed units: zero there.

    What makes up for norms of weights is rescaled. With `parameters_only`, other tensors are left alone but for that.
    """
    new, axes, canonical = rescaled(groups, kept), erasable(groups), groups.graph.canonical

    def change(name: str, value: Tensor) -> Tensor:
        if canonical[name] in new:
            value = new[canonical[name]].to(value)
        elif parameters_only and not isinstance(groups.graph.tensor(name), nn.Parameter):
            return value
        return with_zeros(value, axes[name], kept)

    return change


def gathered(value: Tensor, axes: Axes, kept: Kept) -> Tensor:
    """`value` at its kept positions."""
    for dim, axis in enumerate(axes):
        if kept.changed(axis):
            places = kept.positions_among(axis, value.shape[dim])
            value = value.index_select(dim, torch.as_tensor(places, device=value.device))
    return value
