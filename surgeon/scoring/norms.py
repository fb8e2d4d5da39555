"""Norms of the slices of tensors: one number for each position of an axis, and from these, one for each unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.groups.coupling import Group, Groups, Member
from surgeon.groups.gains import evaluate
from surgeon.ir.operators import operator_name
from surgeon.rules import arguments


class Reductions:
    """The norms of the parameters of some groups, cached; the weights must not change meanwhile."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._norms: dict[tuple[str, int, int], np.ndarray] = {}
        self._scales: frozenset[str] | None = None
        self._normed = {
            groups.graph.canonical[each.normed]: each for each in groups.gains.values() if each.normed
        }
        self._tensors: dict[str, Tensor] = {}

    def members(self, group: Group) -> list[Member]:
        """The group's members that are floating-point parameters, tied ones once.

        The gain of a norm is none: it is a part of the weights, see `tensor`.
        """
        graph = self.groups.graph
        found: dict[tuple[str, int], Member] = {}
        for member in group.members:
            value = graph.values[member.tensor]
            gain = self.groups.gains.get(graph.canonical[member.tensor])
            if isinstance(value, nn.Parameter) and value.is_floating_point() and not (gain and gain.normed):
                found.setdefault((graph.canonical[member.tensor], member.axis), member)
        return list(found.values())

    def positions(self, group: Group, member: Member) -> list[np.ndarray]:
        """For each occurrence of the group in the member's axis: the unit of each position, or -1."""
        return self.groups.space.units(self.groups.tensors[member.tensor][member.axis], group.leaf)

    def tensor(self, member: Member) -> Tensor:
        """The tensor of a member; under weight norm, the weights that are computed of it."""
        name = self.groups.graph.canonical[member.tensor]
        if name not in self._normed:
            return self.groups.graph.tensor(member.tensor)
        if name not in self._tensors:
            self._tensors[name] = evaluate(self._normed[name].graph, self._normed[name].node).float()
        return self._tensors[name]

    def sums(self, group: Group, member: Member, order: int = 2) -> np.ndarray:
        """The sum of |w| ** `order` over each unit's slice of the member, `(units,)` in float64."""
        key = (self.groups.graph.canonical[member.tensor], member.axis, order)
        if key not in self._norms:
            self._norms[key] = _reduce(self.tensor(member), member.axis, order)
        total = np.zeros(group.size)
        for units in self.positions(group, member):
            inside = units >= 0
            total += np.bincount(units[inside], weights=self._norms[key][inside], minlength=group.size)
        return total

    def batch_norm_scales(self) -> frozenset[str]:
        """The names of the parameters that a batch norm multiplies its channels by."""
        if self._scales is None:
            graph = self.groups.graph
            weights = (arguments(node).get("weight") for node in graph.nodes if "batch_norm" in operator_name(node))
            names = (graph.tensors.get(weight.name) for weight in weights if weight is not None)
            self._scales = frozenset(graph.canonical[name] for name in names if name is not None)
        return self._scales

    def features(self, group: Group, member: Member) -> Tensor:
        """Each unit's slice of the member as a row, `(units, elements)` in float32 or wider."""
        moved = wide(self.tensor(member)).movedim(member.axis, 0)
        rows = []
        for units in self.positions(group, member):
            order = np.argsort(units, kind="stable")[int((units < 0).sum()) :]
            rows.append(moved[torch.from_numpy(order)].reshape(group.size, -1))
        return torch.cat(rows, dim=1)


_current: ContextVar[Reductions | None] = ContextVar("surgeon_reductions", default=None)


@contextmanager
def shared(groups: Groups) -> Iterator[Reductions]:
    """Inside of the block, `reductions(groups)` returns the same object, so that no tensor is reduced twice."""
    token = _current.set(Reductions(groups))
    try:
        yield reductions(groups)
    finally:
        _current.reset(token)


def reductions(groups: Groups) -> Reductions:
    """The reductions that are currently shared, or new ones."""
    current = _current.get()
    return current if current is not None and current.groups is groups else Reductions(groups)


def relative(values: np.ndarray) -> np.ndarray | None:
    """The values as multiples of their mean; None where they are zero throughout.

    >>> relative(np.array([1.0, 3.0])).tolist()
    [0.5, 1.5]
    """
    mean = values.mean()
    return values / mean if mean > 0 else None


def averaged(rows: Iterable[np.ndarray], size: int) -> np.ndarray:
    """The mean of rows of `size` numbers, each relative to its own mean; rows that are zero throughout are left out.

    >>> averaged([np.array([1.0, 3.0]), np.zeros(2)], 2).tolist()
    [0.5, 1.5]
    """
    found = [values for values in map(relative, rows) if values is not None]
    return np.mean(found, axis=0) if found else np.zeros(size)


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
