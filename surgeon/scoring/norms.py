"""Each tensor reduced to one number a position of an axis, once, and from there to one number a unit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.groups.coupling import Group, Groups, Member
from surgeon.rules import arguments


class Reductions:
    """The norms of the parameters of some groups, kept for as long as the weights do not change."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._norms: dict[tuple[str, int, int], np.ndarray] = {}
        self._batch_norm_scales: frozenset[str] | None = None

    def members(self, group: Group) -> list[Member]:
        """The group's members that are floating-point parameters, tied ones once."""
        graph = self.groups.graph
        found: dict[tuple[str, int], Member] = {}
        for member in group.members:
            value = graph.values[member.tensor]
            if isinstance(value, nn.Parameter) and value.is_floating_point():
                found.setdefault((graph.canonical[member.tensor], member.axis), member)
        return list(found.values())

    def positions(self, group: Group, member: Member) -> list[np.ndarray]:
        """For each time that the group stands in the member's axis: the unit of each position, or -1."""
        return self.groups.space.units(self.groups.tensors[member.tensor][member.axis], group.leaf)

    def sums(self, group: Group, member: Member, order: int = 2) -> np.ndarray:
        """The sum of |w| ** `order` over each unit's slice of the member, `(units,)` in float64."""
        norms = self._reduced(member, order)
        total = np.zeros(group.size)
        for units in self.positions(group, member):
            inside = units >= 0
            total += np.bincount(units[inside], weights=norms[inside], minlength=group.size)
        return total

    def _reduced(self, member: Member, order: int) -> np.ndarray:
        key = (self.groups.graph.canonical[member.tensor], member.axis, order)
        if key not in self._norms:
            self._norms[key] = _reduce(self.groups.graph.tensor(member.tensor), member.axis, order)
        return self._norms[key]

    def batch_norm_scales(self) -> frozenset[str]:
        """The names of the parameters that a batch norm multiplies its channels with."""
        if self._batch_norm_scales is None:
            self._batch_norm_scales = frozenset(_batch_norm_scales(self.groups))
        return self._batch_norm_scales

    def features(self, group: Group, member: Member) -> Tensor:
        """Each unit's slice of the member as a row, `(units, elements)` in float32 or wider."""
        moved = wide(self.groups.graph.tensor(member.tensor)).movedim(member.axis, 0)
        rows = []
        for units in self.positions(group, member):
            order = np.argsort(units, kind="stable")[int((units < 0).sum()) :]
            rows.append(moved[torch.from_numpy(order)].reshape(group.size, -1))
        return torch.cat(rows, dim=1)


_current: ContextVar[Reductions | None] = ContextVar("surgeon_reductions", default=None)


@contextmanager
def shared(groups: Groups) -> Iterator[Reductions]:
    """Inside of this, `reductions(groups)` gives the same object, so that no tensor is reduced twice."""
    token = _current.set(Reductions(groups))
    try:
        yield reductions(groups)
    finally:
        _current.reset(token)


def reductions(groups: Groups) -> Reductions:
    """The reductions that are shared at the moment, or new ones."""
    current = _current.get()
    return current if current is not None and current.groups is groups else Reductions(groups)


def relative(values: np.ndarray) -> np.ndarray | None:
    """The values as multiples of their mean; None where they are zero throughout.

    >>> relative(np.array([1.0, 3.0])).tolist()
    [0.5, 1.5]
    """
    mean = values.mean()
    return values / mean if mean > 0 else None


def wide(tensor: Tensor) -> Tensor:
    """The tensor on the CPU in at least float32: sums of squares overflow or vanish in half precision."""
    detached = tensor.detach().cpu()
    return detached.float() if detached.dtype.itemsize < 4 else detached


def _reduce(tensor: Tensor, axis: int, order: int) -> np.ndarray:
    values = wide(tensor)
    others = [index for index in range(values.dim()) if index != axis]
    if others:
        norms = torch.linalg.vector_norm(values, ord=order, dim=others)
    else:
        norms = values.abs()
    return norms.double().pow(order).numpy()


def _batch_norm_scales(groups: Groups) -> Iterator[str]:
    graph = groups.graph
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and "batch_norm" in node.target._schema.name:
            weight = arguments(node).get("weight")
            name = graph.tensors.get(weight.name) if weight is not None else None
            if name is not None:
                yield graph.canonical[name]
