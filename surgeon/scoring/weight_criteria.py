"""Criteria that need no data, in a table by name.

>>> groups, group = _example()
>>> rng = np.random.default_rng(0)
>>> {name: CRITERIA[name](groups, group, rng).round(2).tolist() for name in ("magnitude", "l1", "lamp")}
{'magnitude': [1.86, 0.14], 'l1': [8.0, 2.0], 'lamp': [1.0, 0.13]}
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from surgeon.errors import InvalidArgument
from surgeon.groups.coupling import Group, Groups
from surgeon.scoring.norms import averaged, reductions
from surgeon.support.arguments import checked, text

Criterion = Callable[[Groups, Group, np.random.Generator], np.ndarray]

#: The criteria by name.
CRITERIA: dict[str, Criterion] = {}


@checked({"name": text})
def register(name: str) -> Callable[[Criterion], Criterion]:
    """Add a criterion to the table under `name`.

    >>> @register("first come")
    ... def first_come(groups, group, rng):
    ...     return np.arange(group.size, 0, -1)
    >>> CRITERIA.pop("first come") is first_come
    True

    Raises:
        InvalidArgument: the name is taken.
    """

    def add(criterion: Criterion) -> Criterion:
        if name in CRITERIA:
            raise InvalidArgument(f"there is a criterion {name!r} already; register yours under another name")
        CRITERIA[name] = criterion
        return criterion

    return add


@register("magnitude")
def magnitude(groups: Groups, group: Group, rng: np.random.Generator) -> np.ndarray:
    """The squared L2 norm of each unit's slice, in each member relative to the member's mean, averaged over members.

    So neither a layer's scale, which the next norm or layer may undo, nor the number of its weights matters.
    Members that are zero throughout are left out. `(units,)`.

    Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023 (group importance); the norm as in Li et al.,
    "Pruning Filters for Efficient ConvNets", ICLR 2017.

    >>> groups, group = _example()
    >>> magnitude(groups, group, np.random.default_rng(0)).round(3).tolist()
    [1.862, 0.138]
    """
    shared = reductions(groups)
    return averaged((shared.sums(group, member) for member in shared.members(group)), group.size)


@register("l1")
def l1(groups: Groups, group: Group, rng: np.random.Generator) -> np.ndarray:
    """The L1 norm of each unit's weights in all members together. `(units,)`.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017.

    >>> groups, group = _example()
    >>> l1(groups, group, np.random.default_rng(0)).tolist()
    [8.0, 2.0]
    """
    return _sums(groups, group, order=1)


@register("l2")
def l2(groups: Groups, group: Group, rng: np.random.Generator) -> np.ndarray:
    """The L2 norm of each unit's weights in all members together. `(units,)`.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017; He et al., "Soft Filter Pruning", IJCAI 2018.

    >>> groups, group = _example()
    >>> l2(groups, group, np.random.default_rng(0)).round(3).tolist()
    [5.099, 2.0]
    """
    return np.sqrt(_sums(groups, group, order=2))


@register("bn_scale")
def bn_scale(groups: Groups, group: Group, rng: np.random.Generator) -> np.ndarray:
    """The magnitude of each unit's batch norm scale, averaged over the group's batch norms. `(units,)`.

    A group without batch norm is judged by `magnitude`.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.

    >>> import torch
    >>> from torch import nn
    >>> from surgeon.groups.coupling import couple
    >>> from surgeon.frontend.trace import trace
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    >>> with torch.no_grad():
    ...     _ = net[1].weight.copy_(torch.tensor([-3.0, 0.5]))
    >>> groups = couple(trace(net, torch.zeros(2, 1, 4, 4)))
    >>> bn_scale(groups, groups.groups[0], np.random.default_rng(0)).tolist()
    [3.0, 0.5]
    """
    shared = reductions(groups)
    scales = []
    for member in shared.members(group):
        if groups.graph.canonical[member.tensor] in shared.batch_norm_scales():
            positions = sum(int((units >= 0).sum()) for units in shared.positions(group, member))
            scales.append(shared.sums(group, member, 1) / (positions / group.size))
    return np.mean(scales, axis=0) if scales else magnitude(groups, group, rng)


@register("fpgm")
def fpgm(groups: Groups, group: Group, rng: np.random.Generator) -> np.ndarray:
    """How far each unit's filter is from the others: the sum of distances, in each member relative to the mean.

    A filter near the geometric median can be replaced by the others. The filters are the members in which the units
    are rows (axis 0 of a weight); if there are none, all weights, and otherwise all parameters. `(units,)`.

    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", CVPR 2019.

    >>> groups, group = _example()
    >>> fpgm(groups, group, np.random.default_rng(0)).tolist()
    [1.0, 1.0]
    """
    shared = reductions(groups)
    members = shared.members(group)
    weights = [member for member in members if groups.graph.tensor(member.tensor).dim() > 1]
    filters = [member for member in weights if member.axis == 0] or weights or members
    return averaged((_distances(shared.features(group, member)) for member in filters), group.size)


def _distances(rows: torch.Tensor) -> np.ndarray:
    """The sum of each row's distances to the others, `(units,)`.

    They are computed from differences, not from squares, so that equal filters have distance 0, whatever their norm.
    Beyond a few million differences, a matrix product is used all the same, for speed.
    """
    few = rows.shape[0] ** 2 * rows.shape[1] < 1 << 24
    mode = "donot_use_mm_for_euclid_dist" if few else "use_mm_for_euclid_dist"
    return torch.cdist(rows, rows, compute_mode=mode).sum(dim=1).double().numpy()


@register("lamp")
def lamp(groups: Groups, group: Group, rng: np.random.Generator) -> np.ndarray:
    """Each unit's squared norm, relative to the sum of those of all units at least as large. `(units,)`.

    Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, applied to units.

    >>> groups, group = _example()
    >>> lamp(groups, group, np.random.default_rng(0)).round(3).tolist()
    [1.0, 0.133]
    """
    squares = _sums(groups, group, order=2)
    order = np.argsort(squares, kind="stable")
    rest = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros(group.size)
    scores[order] = np.divide(squares[order], rest, out=np.zeros(group.size), where=rest > 0)
    return scores


@register("random")
def random(groups: Groups, group: Group, rng: np.random.Generator) -> np.ndarray:
    """A random number for each unit: the baseline for all other criteria. `(units,)`.

    Mittal et al., "Recovering from Random Pruning", WACV 2018.

    >>> groups, group = _example()
    >>> random(groups, group, np.random.default_rng(0)).shape
    (2,)
    """
    return rng.random(group.size)


def _sums(groups: Groups, group: Group, order: int) -> np.ndarray:
    """The sum of |w| ** `order` over each unit's weights in all members."""
    shared = reductions(groups)
    return sum((shared.sums(group, member, order) for member in shared.members(group)), np.zeros(group.size))


def _example() -> tuple[Groups, Group]:
    """Two units, of weights (3, 4) and 1, and (0, 2) and 0."""
    from torch import nn

    from surgeon.frontend.trace import trace
    from surgeon.groups.coupling import couple

    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        second.weight.copy_(torch.tensor([[1.0, 0.0]]))
    groups = couple(trace(nn.Sequential(first, second), torch.zeros(2, 2)))
    return groups, groups.groups[0]
