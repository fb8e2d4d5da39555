"""Slots: inside each group of a grouped convolution or of a norm, units are put in the order of their worth.

That changes nothing, and then the same slot of every group is cut: each group loses channels of its own, as long as all
lose equally many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.calibration.fisher import Reader
from surgeon.groups.coupling import Group, Groups
from surgeon.ir.axes import Axis, Leaf, Prod
from surgeon.rules import Axes


@dataclass(frozen=True)
class Slots:
    """A group whose units stand once in each unit of `outer`, wherever they are."""

    group: Group
    outer: Leaf

    def sort(self, groups: Groups, readers: Iterable[Reader], tensors: Mapping[str, Tensor]) -> bool:
        """Put the units that are worth most first, in each unit of `outer`; whether any reader told what they are."""
        worth = torch.zeros(self.outer.size, self.group.size, dtype=torch.float64)
        known = False
        for reader in readers:
            axes = groups.axes[reader.layer.weight.node]
            if self.group.leaf.id in reader.units and isinstance(axes, tuple):
                shape = reader.layer.weight.places.shape
                places = [reader.layer.matrix(each)[:, :, 0] for each in self._indices(groups, axes, shape)]
                worth.index_put_(tuple(places), _worth(reader).cpu(), accumulate=True)
                known = True
        order = worth.argsort(dim=1, descending=True, stable=True)
        for name, axes in groups.tensors.items():
            if known and name in tensors and groups.graph.canonical[name] == name and (
                _has(groups, axes, self.group.leaf)
            ):
                outer, inner = self._indices(groups, axes, tensors[name].shape)
                dim, stride = self._stand(groups, axes, self.group.leaf)
                position = torch.arange(tensors[name].shape[dim]).reshape([-1] + [1] * (tensors[name].dim() - 1 - dim))
                source = position + (order[outer, inner] - inner) * stride
                value = tensors[name].detach()
                value.copy_(value.gather(dim, source.to(value.device)))
        return known

    def _stand(self, groups: Groups, axes: Axes, leaf: Leaf) -> tuple[int, int]:
        place = _place(groups, axes, leaf)
        assert place is not None  # find has seen to that
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
    """The slots that a group's units are: another leaf stands with them in every tensor and every value.

    No operator may sum over that leaf alone: attention sums over the channels of each head, so that heads are no slots.
    """
    common: set[Leaf] | None = None
    values = [axes for each in groups.axes.values() for axes in (each if isinstance(each, list) else [each])]
    for axes in (*groups.tensors.values(), *values):
        if not _has(groups, axes, group.leaf):
            continue
        once = {leaf for leaf in _leaves(groups, axes) if _place(groups, axes, leaf) is not None}
        if group.leaf not in once:
            return None
        common = once if common is None else common & once
    outer = [leaf for leaf in (common or set()) - {group.leaf} if not _mixed(groups, group.leaf, leaf)]
    return Slots(group, outer[0]) if len(outer) == 1 else None


def _mixed(groups: Groups, inner: Leaf, outer: Leaf) -> bool:
    """Whether an operator sums over units of `outer` but not of `inner`, so that those must not change places apart."""
    for node, typed in groups.typed.items():
        summed = _leaves(groups, (*typed.contracted, *typed.reduced))
        if outer not in summed or inner in summed:
            continue
        for each in (node, *node.all_input_nodes):
            axes = groups.axes[each]
            if any(_has(groups, one, inner) for one in (axes if isinstance(axes, list) else [axes])):
                return True
    return False


def _worth(reader: Reader) -> Tensor:
    """What the loss of each input (G, f) does once the others make up for it."""
    covariance, _ = reader.moments.covariances()
    diagonal = covariance.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    damped = covariance + torch.diag_embed((1e-2 * diagonal + 1e-12).expand(covariance.shape[:2]))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped)).diagonal(dim1=1, dim2=2)
    matrix = reader.layer.matrix(reader.layer.weight.read()).double()
    metric = reader.gradients * (reader.positions / max(reader.count, 1))
    return (matrix @ metric * matrix).sum(2) / inverse


def _has(groups: Groups, axes: Axes, leaf: Leaf) -> bool:
    return leaf in _leaves(groups, axes)


def _leaves(groups: Groups, axes: Axes) -> set[Leaf]:
    return {leaf for axis in axes for leaf in groups.space.leaves(axis)}


def _places(groups: Groups, axes: Axes, leaf: Leaf) -> Iterator[tuple[int, int] | None]:
    for dim, axis in enumerate(axes):
        resolved: Axis = groups.space.resolve(axis)
        factors = resolved.factors if isinstance(resolved, Prod) else (resolved,)
        stride = resolved.size
        for factor in factors:
            stride //= factor.size
            if factor == leaf:
                yield dim, stride
            elif leaf in groups.space.leaves(factor):
                yield None


def _place(groups: Groups, axes: Axes, leaf: Leaf) -> tuple[int, int] | None:
    """The axis in which a leaf stands as a factor, and its stride there; None unless that is once and nowhere else."""
    found = list(_places(groups, axes, leaf))
    return found[0] if len(found) == 1 else None
