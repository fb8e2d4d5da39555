"""Ladders of the widths that groups may take, and the order in which their rungs are taken.

The rungs of all groups are taken in that order until a budget is met (`ladder`):

- globally by the share of the group's importance that would be lost in all,
- locally by the share of its units,
- isomorphically by the place of the rung's units among all units of groups of the same structure.

Three things hold a rung back or bring it forward, all read off the axes and the costs, never off a model's kind:

- Of leaves whose product forms one axis of a weight, such as heads · head size or groups · channels in a group, the
  outermost is cut first: removing heads saves time in proportion, making heads smaller saves half as much.
- Convolutions on fewer than 16 channels leave the fast kernels, so a wider group gets there late.
- Groups whose MACs stand for more time than other groups' (depthwise convolutions, which move more than they compute)
  are cut deeper, groups that save next to nothing are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from surgeon.allocation.greedy import Ladder
from surgeon.allocation.limits import retained
from surgeon.cost.alignment import NARROW, Alignment
from surgeon.cost.cost import Cost
from surgeon.groups.coupling import Group, Groups

_HELD_NARROW = 3.0
_HELD_INNER = 4.0
_HELD_USELESS = 100.0


class Rungs:
    """Makes the ladders of the groups; `held` tells how much later than others the widths of a leaf are taken."""

    def __init__(
        self, groups: Groups, scores: Mapping[int, np.ndarray], cost: Cost, budget: str, scope: str, align: int | None,
        tops: Mapping[int, int],
    ) -> None:
        self.groups, self.budget, self.scope, self.align, self.tops = groups, budget, scope, align, tops
        self.alignment = Alignment(groups, cost)
        self.retained = {group.leaf.id: retained(scores[group.leaf.id], group.size) for group in groups}
        self.places = _places(groups, scores) if scope == "isomorphic" else {}
        paces = _paces(cost, budget)
        self.held = {group.leaf.id: self._held(group, paces[group.leaf.id]) for group in groups}

    def ladders(self, finest: int, least: float, floors: Mapping[int, int]) -> list[Ladder]:
        """`finest` bounds the default alignment from above; groups without a floor keep the share `least`."""
        return [
            self._ladder(group, finest, floors.get(group.leaf.id, max(1, math.ceil(least * group.size))))
            for group in self.groups
        ]

    def _ladder(self, group: Group, finest: int, floor: int) -> Ladder:
        leaf, size, top = group.leaf.id, group.size, self.tops[group.leaf.id]
        step = self.alignment.step(group, self.align, finest)
        widths = (*(width for width in range(step, top, step) if width >= floor), top)
        inner = leaf in self.alignment.inner
        if self.scope == "isomorphic" and self.budget != "channels":
            found = [float(self.places[leaf][a:b].mean()) for a, b in pairwise(widths)]
            return Ladder(group, widths, np.array([*found, -1.0]) + float(inner))
        if self.scope == "local" or self.budget == "channels":
            # A share p of the group is removed, rounded: the rung is taken where (1 - p) · size is nearer to it.
            orders = [1 - (a + b) / 2 / size for a, b in pairwise(widths)]
            later = 1.0 if inner and self.budget != "channels" else 0.0
            return Ladder(group, widths, np.array([*orders, -1.0]) + later)
        at = np.array(widths) - 1
        return Ladder(group, widths, -np.log(self.retained[leaf][at]) * self.held[leaf][at])

    def _held(self, group: Group, pace: float) -> np.ndarray:
        held = np.full(group.size, 1 / pace)
        if group.leaf.id in self.alignment.inner:
            held *= _HELD_INNER
        unit = min(self.alignment.inside[group.leaf.id])
        if self.align is None and group.size * unit >= NARROW:
            held[np.arange(1, group.size + 1) * unit < NARROW] *= _HELD_NARROW
        return held


def _paces(cost: Cost, budget: str) -> dict[int, float]:
    """How much faster than others a group goes: by the time its MACs stand for, and 0.01 where they are few."""
    widths = cost.vector({})
    wanted, time = cost.polynomial(budget), cost.time
    shares = {leaf: -wanted.change(widths, cost.order[leaf], size // 2) for leaf, size in cost.sizes.items()}
    times = {leaf: -time.change(widths, cost.order[leaf], size // 2) for leaf, size in cost.sizes.items()}
    few = 0.05 * sum(shares.values()) / max(len(shares), 1)
    speed = sum(times.values()) / max(sum(shares.values()), 1e-9)
    paces = {}
    for leaf, share in shares.items():
        if share <= few:
            paces[leaf] = 1 / _HELD_USELESS
        elif budget == "macs":
            paces[leaf] = float(np.clip(times[leaf] / share / speed, 0.5, 2.0)) ** 0.5
        else:
            paces[leaf] = 1.0
    return paces


def _places(groups: Groups, scores: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """For the units of each leaf, the best first, their place from 0 to 1 among those of groups of its structure."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for group in groups:
        alike.setdefault(_structure(groups, group), []).append(group.leaf.id)
    found = {}
    for leaves_ in alike.values():
        every = np.sort(np.concatenate([scores[leaf] for leaf in leaves_]))
        for leaf in leaves_:
            best_first = np.sort(scores[leaf])[::-1]
            below, upto = (np.searchsorted(every, best_first, side) for side in ("left", "right"))
            found[leaf] = (below + upto) / (2 * len(every))
    return found


def _structure(groups: Groups, group: Group) -> tuple[Any, ...]:
    """What operators read the group's members, and in which of their axes the units stand; sizes do not count."""
    graph = groups.graph
    readers: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.name in graph.tensors:
            names = readers.setdefault(graph.canonical[graph.tensors[node.name]], [])
            names += [str(user.target) for user in node.users]
    return tuple(sorted(
        (member.axis, graph.tensor(member.tensor).dim(), *sorted(readers.get(graph.canonical[member.tensor], ())))
        for member in group.members
    ))
