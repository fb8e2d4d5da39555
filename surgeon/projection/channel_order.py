"""Channel order: inside each group of a grouped convolution or a norm, units are sorted by importance.

That changes nothing, but then cutting the same position of every group removes different channels of each, as long as
all lose equally many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.calibration.readers import Reader
from surgeon.groups.coupling import Group, Groups
from surgeon.ir.axes import Axis, Leaf, Prod
from surgeon.projection.draft import Draft
from surgeon.rules import Axes


@dataclass(frozen=True)
class Slots:
    """A group whose units are, in all tensors, the positions within each unit of `outer`."""

    group: Group
    outer: Leaf

    def order(self, groups: Groups, readers: Iterable[Reader]) -> Tensor | None:
        """The units in each unit of `outer`, the most important first, (outer, n); None if no reader shows that.

        `readers` are those of the unchanged model.
        """
        worth = torch.zeros(self.outer.size, self.group.size, dtype=torch.float64)
        known = False
        for reader in readers:
            axes = groups.axes[reader.layer.weight.node]
            if self.group.leaf.id in reader.units and isinstance(axes, tuple):
                shape = reader.layer.weight.places.shape
                places = [reader.layer.matrix(each)[:, :, 0] for each in self._indices(groups, axes, shape)]
                worth.index_put_(tuple(places), _worth(reader).cpu(), accumulate=True)
                known = True
        return worth.argsort(dim=1, descending=True, stable=True) if known else None

    def sort(self, order: Tensor, groups: Groups, tensors: Mapping[str, Tensor], draft: Draft) -> None:
        """Sort the units of every tensor into this order."""
        for name, axes in groups.tensors.items():
            own = name in tensors and groups.graph.canonical[name] == name
            if not own or self.group.leaf not in groups.leaves(axes):
                continue
            value = draft.tensor(tensors[name])
            outer, inner = self._indices(groups, axes, value.shape)
            dim, stride = self._stand(groups, axes, self.group.leaf)
            position = torch.arange(value.shape[dim]).reshape([-1] + [1] * (value.dim() - 1 - dim))
            source = position + (order[outer, inner] - inner) * stride
            value.copy_(value.gather(dim, source.to(value.device)))

    def _stand(self, groups: Groups, axes: Axes, leaf: Leaf) -> tuple[int, int]:
        place = _place(groups, axes, leaf)
        assert place is not None  # as `find` has checked
        return place

    def _indices(self, groups: Groups, axes: Axes, shape: Iterable[int]) -> list[Tensor]:
        """The units of `outer` and of the group that each element of a tensor belongs to."""
        shape = list(shape)
        found = []
        for leaf in (self.outer, self.group.leaf):
            dim, stride = self._stand(groups, axes, leaf)
            index = torch.arange(shape[dim]) // stride % leaf.size
            found.append(index.reshape([-1] + [1] * (len(shape) - 1 - dim)).expand(shape).contiguous())
        return found


def find(groups: Groups, group: Group) -> Slots | None:
    """The slots of a group, if one other leaf is combined with it in every tensor and every value.

    No operator may sum over that leaf alone: attention sums over the channels of each head, which excludes heads.
    """
    common: set[Leaf] | None = None
    values = [axes for node in groups.axes for axes in groups.axes_of(node)]
    for axes in (*groups.tensors.values(), *values):
        every = groups.leaves(axes)
        if group.leaf not in every:
            continue
        once = {leaf for leaf in every if _place(groups, axes, leaf) is not None}
        if group.leaf not in once:
            return None
        common = once if common is None else common & once
    outer = [leaf for leaf in (common or set()) - {group.leaf} if not _mixed(groups, group.leaf, leaf)]
    return Slots(group, outer[0]) if len(outer) == 1 else None


def _mixed(groups: Groups, inner: Leaf, outer: Leaf) -> bool:
    """Whether an operator sums over units of `outer` but not of `inner`, so that these must keep a common order."""
    for node, typed in groups.typed.items():
        summed = groups.leaves((*typed.contracted, *typed.reduced))
        apart = outer in summed and inner not in summed
        if apart and any(groups.holds(each, inner) for each in (node, *node.all_input_nodes)):
            return True
    return False


def _worth(reader: Reader) -> Tensor:
    """The damage of removing each input (G, f) when the others compensate for it."""
    covariance, _ = reader.moments.covariances()
    diagonal = covariance.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    damped = covariance + torch.diag_embed((1e-2 * diagonal + 1e-12).expand(covariance.shape[:2]))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped)).diagonal(dim1=1, dim2=2)
    matrix = reader.layer.matrix(reader.layer.weight.read()).double()
    return (matrix @ reader.metric * matrix).sum(2) / inverse


def _place(groups: Groups, axes: Axes, leaf: Leaf) -> tuple[int, int] | None:
    """The axis that has a leaf as a factor, and its stride there; None unless that is its only occurrence."""
    found: list[tuple[int, int] | None] = []
    for dim, axis in enumerate(axes):
        resolved: Axis = groups.space.resolve(axis)
        stride = resolved.size
        for factor in resolved.factors if isinstance(resolved, Prod) else (resolved,):
            stride //= factor.size
            if leaf in groups.space.leaves(factor):
                found.append((dim, stride) if factor == leaf else None)
    return found[0] if len(found) == 1 else None
