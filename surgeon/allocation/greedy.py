"""Greedy width schedules: every group steps down through its allowed widths until a budget is met.

The steps of all groups are taken in one order (`meet`):

- for the scope "local", and for a share of the channels, by the share of the group's units that is removed,
- for the scope "isomorphic", by the rank of the step's units among all units of groups of the same structure.

Of leaves whose product forms one axis of a weight, such as heads · head size or groups · channels in a group, the
outermost is cut first: removing heads saves time in proportion, making heads smaller saves half as much.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from surgeon.cost.target import TOLERANCE, Target
from surgeon.groups.coupling import Group, Groups

_CLOSE = 0.002
_STRAIN = 0.01
_TRIES = 20
_ROUNDS = 40


@dataclass(frozen=True)
class WidthSchedule:
    """The widths that a group can take, ascending, and the key by which the step down to each is ordered."""

    group: Group
    widths: tuple[int, ...]
    orders: np.ndarray


def schedule(
    group: Group, widths: tuple[int, ...], places: Mapping[int, np.ndarray], inner: bool
) -> WidthSchedule:
    """The schedule of a group that may take these widths; an `inner` one steps down after all others.

    `places` are those of `places_of`, where units are compared with those of groups of the same structure.
    """
    if group.leaf.id in places:
        orders = [float(places[group.leaf.id][a:b].mean()) for a, b in pairwise(widths)]
    else:
        # A share p of the group is removed, rounded: the step is taken where (1 - p) · size is nearer to it.
        orders = [1 - (a + b) / 2 / group.size for a, b in pairwise(widths)]
    return WidthSchedule(group, widths, np.array([*orders, -1.0]) + float(inner))


def meet(target: Target, schedules: list[WidthSchedule], refine: bool = True, even: bool = False) -> dict[int, int]:
    """The widths after the first step at which the budget is met: one step less would exceed it.

    Single steps are then taken or undone, to use more of the budget; without `refine`, only if more than the tolerance
    is unused. With `even`, groups of equal widths and orders keep equal widths, and no single step is taken. If the
    budget can't be met, all steps are taken.
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

    count = bisect.bisect_left(
        range(len(steps)), True, key=lambda count: polynomial(_widths(schedules, standing(count))) <= limit
    )
    while even and 0 < count < len(steps) and steps[count][:2] == steps[count - 1][:2]:
        count += 1
    at = standing(count)
    left = polynomial(_widths(schedules, at))
    if left <= limit and not even and (refine or left < (1 - TOLERANCE) * limit):
        at = _refine(target, schedules, at, steps[count - 1][0] if count else 0.0)
    return {schedule.group.leaf.id: schedule.widths[index] for schedule, index in zip(schedules, at, strict=True)}


def _refine(target: Target, schedules: list[WidthSchedule], at: np.ndarray, level: float) -> np.ndarray:
    """Take or undo single steps, and pairs of them, as long as that leaves less of the limit unused.

    A step far from the key `level` that was reached must use more, unless too much is unused without it.
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
        # Only now is it known how two steps of groups that share an operator change the cost together.
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


def places_of(groups: Groups, scores: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """For the units of each leaf, the best first, their rank from 0 to 1 among those of groups of its structure."""
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
    """The operators that read the group's members, and the axes that contain the units, whatever their sizes."""
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
