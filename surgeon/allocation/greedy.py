"""Greedy width schedules: every group steps down through the widths that it may take until a budget is met.

The steps of all groups are taken in one order (`meet`):

- locally, and for a share of the channels, by the share of the group's units that goes,
- isomorphically by the place of the step's units among all units of groups of the same structure.

Of leaves whose product forms one axis of a weight, such as heads · head size or groups · channels in a group, the
outermost is cut first: removing heads saves time in proportion, making heads smaller saves half as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from surgeon.allocation.limits import allowed
from surgeon.cost.alignment import Alignment
from surgeon.cost.cost import Cost
from surgeon.cost.target import TOLERANCE, Target
from surgeon.groups.coupling import Group, Groups

_CLOSE = 0.002
_STRAIN = 0.01
_TRIES = 20
_ROUNDS = 40


@dataclass(frozen=True)
class WidthSchedule:
    """The widths that a group may take, ascending, and the order in which stepping down to each is taken."""

    group: Group
    widths: tuple[int, ...]
    orders: np.ndarray


class Schedules:
    """Makes the schedules of the groups."""

    def __init__(
        self, groups: Groups, scores: Mapping[int, np.ndarray], cost: Cost, budget: str, scope: str, align: int | None,
        tops: Mapping[int, int],
    ) -> None:
        self.groups, self.budget, self.scope, self.align, self.tops = groups, budget, scope, align, tops
        self.alignment = Alignment(groups, cost)
        self.places = _places(groups, scores) if scope == "isomorphic" else {}

    def of(self, finest: int, least: float, floors: Mapping[int, int]) -> list[WidthSchedule]:
        """`finest` bounds the default alignment from above; groups without a floor keep the share `least`."""
        return [
            self._schedule(group, finest, floors.get(group.leaf.id, max(1, math.ceil(least * group.size))))
            for group in self.groups
        ]

    def _schedule(self, group: Group, finest: int, floor: int) -> WidthSchedule:
        leaf, size, top = group.leaf.id, group.size, self.tops[group.leaf.id]
        step = self.alignment.step(group, self.align, finest)
        widths = allowed(top, step, floor)
        inner = leaf in self.alignment.inner
        if self.scope == "isomorphic" and self.budget != "channels":
            found = [float(self.places[leaf][a:b].mean()) for a, b in pairwise(widths)]
            return WidthSchedule(group, widths, np.array([*found, -1.0]) + float(inner))
        # A share p of the group is removed, rounded: the step is taken where (1 - p) · size is nearer to it.
        orders = [1 - (a + b) / 2 / size for a, b in pairwise(widths)]
        later = 1.0 if inner and self.budget != "channels" else 0.0
        return WidthSchedule(group, widths, np.array([*orders, -1.0]) + later)


def meet(target: Target, schedules: list[WidthSchedule], refine: bool = True) -> dict[int, int]:
    """The widths after the first step at which the budget is met, so that one step fewer would exceed it.

    Single steps are then taken and put back, to use more of what may be left; where `refine` is False, only if more
    than the tolerance is unused. Where the budget can't be met, every step is taken.
    """
    polynomial, limit = target.polynomial, target.limit
    steps = sorted(
        (float(order), -width, place, index)
        for place, schedule in enumerate(schedules)
        for index, (width, order) in enumerate(zip(schedule.widths[:-1], schedule.orders[:-1], strict=True))
    )
    places = np.array([step[2] for step in steps], dtype=np.int64)
    indices = np.array([step[3] for step in steps], dtype=np.int64)
    top = np.array([len(schedule.widths) - 1 for schedule in schedules])

    def standing(count: int) -> np.ndarray:
        """The step of each schedule after the first `count` steps were taken."""
        found = top.copy()
        np.minimum.at(found, places[:count], indices[:count])
        return found

    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        if polynomial(_widths(schedules, standing(middle))) <= limit:
            high = middle
        else:
            low = middle + 1
    at = standing(low)
    left = polynomial(_widths(schedules, at))
    if left <= limit and (refine or left < (1 - TOLERANCE) * limit):
        at = _refine(target, schedules, at, steps[low - 1][0] if low else 0.0)
    return {schedule.group.leaf.id: schedule.widths[index] for schedule, index in zip(schedules, at, strict=True)}


def _refine(target: Target, schedules: list[WidthSchedule], at: np.ndarray, level: float) -> np.ndarray:
    """Take or put back single steps, and pairs of them, for as long as less of the limit is left unused.

    A move far from the `level` of order that was reached must use the more, unless too much is unused without.
    """
    polynomial, whole = target.polynomial, target.whole
    close = min(_CLOSE, TOLERANCE * target.limit / whole)
    for _ in range(_ROUNDS * len(schedules)):
        now = _widths(schedules, at)
        unused = (target.limit - polynomial(now)) / whole
        moves = [
            (place, index)
            for place, schedule in enumerate(schedules)
            for index in (at[place] - 1, at[place] + 1)
            if 0 <= index < len(schedule.widths)
        ]
        if unused <= close or not moves:
            break
        deltas = np.array([polynomial.change(now, p, schedules[p].widths[i]) / whole for p, i in moves])
        strain = np.array([abs(schedules[p].orders[min(i, at[p])] - level) for p, i in moves])
        strain *= _STRAIN if unused * whole <= TOLERANCE * target.limit else 0.0
        price = np.where(deltas <= unused, np.maximum(unused - deltas, close) + strain, np.inf)
        best = int(np.argmin(price))
        if price[best] < unused:
            at = _moved(at, [moves[best]])
            continue
        owner = np.array([place for place, _ in moves])
        both = deltas[:, None] + deltas[None]
        pairs = np.where(both <= unused, unused - both + strain[:, None] + strain[None], np.inf)
        pairs[owner[:, None] == owner[None]] = np.inf
        nearest = np.argsort(pairs, axis=None)[:_TRIES]
        trials = [
            _moved(at, [moves[index] for index in divmod(int(flat), len(moves))])
            for flat in nearest if pairs.flat[flat] < unused
        ]
        # What two moves of factors of one cost change together is only known now.
        left = [target.limit - polynomial(_widths(schedules, trial)) for trial in trials]
        better = [trial for trial, each in zip(trials, left, strict=True) if 0 <= each < unused * whole]
        if not better:
            break
        at = better[0]
    return at


def _moved(at: np.ndarray, moves: list[tuple[int, int]]) -> np.ndarray:
    found = at.copy()
    for place, index in moves:
        found[place] = index
    return found


def _widths(schedules: list[WidthSchedule], at: np.ndarray) -> np.ndarray:
    return np.array([schedule.widths[index] for schedule, index in zip(schedules, at, strict=True)], dtype=np.float64)


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
