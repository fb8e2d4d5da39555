"""How many units of each group stay, so that a given share of a budget goes.

Every group has a ladder of widths it may take. Stepping down one rung has an order, and the rungs of all groups are
taken in that order until the budget is met; then single rungs are put back or taken to come closest to it.

- `scope="global"` orders rungs by the share of the group's importance that would be lost in all, so that every group
  ends with about the same share of its importance. Where units are worth alike, that is the same share of units.
- `scope="local"` orders them by the share of the group's units, whatever those are worth.
- `scope="isomorphic"` orders them by the place of the rung's units among all units of groups of the same structure, so
  that units are compared with their like alone, and each structure loses the same share of its units (Fang et al.,
  "Isomorphic Pruning for Vision Models", ECCV 2024, arXiv:2407.04616).

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

from surgeon.axes import leaves
from surgeon.cost import Cost, positions_inside, products
from surgeon.coupling import Group, Groups
from surgeon.errors import Infeasible, InvalidArgument
from surgeon.ladder import TOLERANCE, Ladder, meet
from surgeon.limits import LEAST_SHARE, Keep, floors, nothing_to_prune, retained

SCOPES = ("global", "local", "isomorphic")
#: Below this many channels convolutions are computed by slower kernels.
NARROW = 16

_LISTED = 6
_HELD_NARROW = 3.0
_HELD_INNER = 4.0
_HELD_USELESS = 100.0


def allocate(
    groups: Groups,
    scores: Mapping[int, np.ndarray],
    cost: Cost,
    *,
    budget: str = "macs",
    ratio: float = 0.5,
    scope: str = "global",
    align: int | None = None,
    keep: Keep = None,
    ceilings: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """The width of every group, by the id of its leaf, so that `ratio` of the budget is removed.

    Args:
        groups: what may be removed.
        scores: a number a unit, by leaf: `(units,)`.
        cost: the costs of the same groups.
        budget: "macs", "params", or "channels": that share of each group's units.
        ratio: the share to remove, at least 0 and less than 1. "macs" and "params" are met within 2 %.
        scope: "global" compares groups by importance, "local" takes the same share of each, "isomorphic" the same share
            of all groups that are of one structure, of which it compares the units.
        align: widths are multiples of it; what a unit is made of counts, so that heads of 64 are aligned at any number.
            By default 16 for groups of 32 and more, 8 from 24, 4 from 8, and any width below; finer only where the
            budget can't be met so. 1 allows every width. The full width is always allowed.
        keep: what is left of a group at least: a share (float) or a width (int), for all groups or by glob of names.
        ceilings: what is left of a group at most, by leaf, such as after an earlier allocation.

    Raises:
        InvalidArgument: an argument is out of range, or `keep` names no group.
        NothingToPrune: there are no groups.
        Infeasible: the budget can't be met; the message says how far it could go and what holds the rest.

    >>> import torch
    >>> from torch import nn
    >>> from surgeon.coupling import couple
    >>> from surgeon.trace import trace
    >>> groups = couple(trace(nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 5)), torch.zeros(2, 10)))
    >>> scores = {groups.groups[0].leaf.id: np.ones(64)}
    >>> list(allocate(groups, scores, Cost(groups), ratio=0.5).values())
    [32]
    >>> list(allocate(groups, scores, Cost(groups), ratio=0.3, align=1).values())
    [45]
    """
    ratio = check_ratio(ratio)
    cost.check(budget)
    if scope not in SCOPES:
        raise InvalidArgument(f"scope={scope!r} is none that surgeon knows; choose one of {', '.join(SCOPES)}")
    if align is not None and (type(align) is not int or align < 1):
        raise InvalidArgument(f"align={align!r}: give an integer of at least 1, or None for the default")
    held = floors(groups, keep)
    if not groups.groups:
        raise nothing_to_prune(groups)
    full = {group.leaf.id: group.size for group in groups}
    tops = full | dict(ceilings or {})
    if ratio == 0:
        return tops
    builder = _Builder(groups, scores, cost, budget, scope, align, held, tops)
    if budget == "channels":
        return _uniform(builder, ratio)
    best: tuple[float, dict[int, int]] | None = None
    for finest in (NARROW, 8, 4, 2, 1) if align is None else (align,):
        for least in (LEAST_SHARE, 0.0):
            widths, error = meet(cost, budget, ratio, builder.ladders(finest, least, held))
            if best is None or error < best[0]:
                best = error, widths
            if error <= TOLERANCE / 2:
                return widths
        if best is not None and best[0] <= TOLERANCE:
            return best[1]
    assert best is not None
    left = cost.of(budget)(best[1]) / cost.of(budget)(full)
    raise Infeasible(_infeasible(cost, budget, ratio, best[1], held), reachable=1 - left)


def check_ratio(ratio: Any, name: str = "ratio") -> float:
    """`ratio` as a float, if it is a number of at least 0 and less than 1; `name` is what the user knows it by."""
    number = isinstance(ratio, int | float | np.floating | np.integer) and not isinstance(ratio, bool)
    if not number or not 0 <= ratio < 1:
        raise InvalidArgument(
            f"{name}={ratio!r}: give the share of the budget to remove, a number of at least 0 and less than 1"
        )
    return float(ratio)


class _Builder:
    """Makes the groups' ladders."""

    def __init__(
        self,
        groups: Groups,
        scores: Mapping[int, np.ndarray],
        cost: Cost,
        budget: str,
        scope: str,
        align: int | None,
        floors: Mapping[int, int],
        tops: Mapping[int, int],
    ) -> None:
        self.groups, self.cost, self.budget, self.scope = groups, cost, budget, scope
        self.align, self.floors, self.tops = align, floors, tops
        self.inside, self.inner = _products(groups, cost)
        self.retained = {group.leaf.id: retained(scores[group.leaf.id], group.size) for group in groups}
        self.places = _places(groups, scores) if scope == "isomorphic" else {}
        self.pace = self._paces()

    def ladders(self, finest: int, least: float, floors: Mapping[int, int]) -> list[Ladder]:
        """`finest` bounds the default alignment from above; groups without a floor keep the share `least`."""
        return [
            self._ladder(group, finest, floors.get(group.leaf.id, max(1, math.ceil(least * group.size))))
            for group in self.groups
        ]

    def _ladder(self, group: Group, finest: int, floor: int) -> Ladder:
        leaf, size, top = group.leaf.id, group.size, self.tops[group.leaf.id]
        step = _step(group, self.inside[group.leaf.id], self.align, finest)
        widths = (*(width for width in range(step, top, step) if width >= floor), top)
        inner = leaf in self.inner
        if self.scope == "isomorphic" and self.budget != "channels":
            found = [float(self.places[leaf][a:b].mean()) for a, b in pairwise(widths)]
            return Ladder(group, widths, np.array([*found, -1.0]) + float(inner))
        if self.scope == "local" or self.budget == "channels":
            # A share p of the group is removed, rounded: the rung is taken where (1 - p) · size is nearer to it.
            orders = [1 - (a + b) / 2 / size for a, b in pairwise(widths)]
            held = 1.0 if inner and self.budget != "channels" else 0.0
            return Ladder(group, widths, np.array([*orders, -1.0]) + held)
        counts = np.array(widths)
        orders_ = -np.log(self.retained[leaf][counts - 1]) / self.pace[leaf]
        if inner:
            orders_ *= _HELD_INNER
        unit = min(self.inside[leaf])
        if self.align is None and size * unit >= NARROW:
            orders_ = np.where(counts * unit < NARROW, orders_ * _HELD_NARROW, orders_)
        return Ladder(group, widths, orders_)

    def _paces(self) -> dict[int, float]:
        """How much faster than others a group goes: by the time its MACs stand for, and 0.01 where they are few."""
        widths = self.cost.vector({})
        wanted, time = self.cost.polynomial(self.budget), self.cost.time
        shares, times = {}, {}
        for group in self.groups:
            place = self.cost.order[group.leaf.id]
            shares[group.leaf.id] = -wanted.change(widths, place, group.size // 2)
            times[group.leaf.id] = -time.change(widths, place, group.size // 2)
        few = 0.05 * sum(shares.values()) / max(len(shares), 1)
        speed = sum(times.values()) / max(sum(shares.values()), 1e-9)
        paces = {}
        for leaf, share in shares.items():
            if share <= few:
                paces[leaf] = 1 / _HELD_USELESS
            elif self.budget == "macs":
                paces[leaf] = float(np.clip(times[leaf] / share / speed, 0.5, 2.0))
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


def steps(groups: Groups, cost: Cost, align: int | None = None, finest: int = NARROW) -> dict[int, int]:
    """What each group's width is a multiple of, by leaf; `align` as for `allocate`, `finest` bounds its default."""
    inside, _ = _products(groups, cost)
    return {group.leaf.id: _step(group, inside[group.leaf.id], align, finest) for group in groups}


def _step(group: Group, inside: set[int], align: int | None, finest: int) -> int:
    """The least number of units by which a group's width may vary; `inside` tells the positions of a unit."""
    size = group.size
    if size < 8:
        return 1
    wanted = []
    for positions in inside:
        total = size * positions
        multiple = align or min(16 if total >= 32 else 8 if total >= 24 else 4, finest)
        wanted.append(multiple // math.gcd(multiple, positions))
    step = max(wanted)
    while align is None and step > 1 and size // step < 2:
        step //= 2
    return step


def _products(groups: Groups, cost: Cost) -> tuple[dict[int, set[int]], set[int]]:
    """For each leaf how many positions a unit has on end in weights; and the leaves that are inner factors.

    The head size of attention counts as one where there is but one head: its scale is worked out from it.
    """
    weights = {name for share in cost.shares("macs") for name in share.tensors}
    inside: dict[int, set[int]] = {}
    others: dict[int, set[int]] = {}
    outer: set[int] = set()
    inner: set[int] = set()
    for name, axes in groups.tensors.items():
        for axis in axes:
            resolved = groups.space.resolve(axis)
            for leaf, positions in positions_inside(resolved):
                (inside if name in weights else others).setdefault(leaf, set()).add(positions)
            for factors in products(resolved):
                found = [leaf.id for factor in factors for leaf in leaves(factor) if leaf.id in cost.order]
                if len(found) > 1:
                    outer.add(found[0])
                    inner.update(found[1:])
    every = {leaf: inside.get(leaf) or others.get(leaf) or {1} for leaf in cost.order}
    scaled = {
        leaf.id
        for typed in groups.typed.values()
        if "scale" in typed.args
        for axis in typed.contracted
        for leaf in groups.space.leaves(axis)
    }
    return every, (inner - outer) | scaled


def _uniform(builder: _Builder, ratio: float) -> dict[int, int]:
    """The same share of each group's units, to the nearest width that is allowed."""
    found, held = {}, []
    for ladder in builder.ladders(NARROW, 0.0, {}):
        group = ladder.group
        wanted = (1 - ratio) * group.size
        width = min(ladder.widths, key=lambda width, wanted=wanted: (abs(width - wanted), width))  # type: ignore[misc]
        floor = builder.floors.get(group.leaf.id, 1)
        if width < floor:
            held.append(f"  {group.name}: {width} of {group.size} units would stay, keep= asks for {floor}")
        found[group.leaf.id] = width
    if held:
        head = f"{ratio:.1%} of every group's units can't be removed:"
        raise Infeasible("\n".join([head, *held[:_LISTED], "Remedy: lower ratio or keep=."]))
    return found


def _infeasible(cost: Cost, budget: str, ratio: float, widths: Mapping[int, int], floors: Mapping[int, int]) -> str:
    total, left = cost.of(budget)({}), cost.of(budget)(widths)
    removed = 1 - left / total if total else 0.0
    lines = [f"  {line}" for line in cost.explain(budget, widths, _LISTED)]
    held = [group for group in cost.groups if floors.get(group.leaf.id, 1) > 1]
    lines += [f"  keep= holds {group.name} at {floors[group.leaf.id]} of {group.size}" for group in held[:_LISTED]]
    reach = "at most" if removed < ratio else "the nearest is that"
    return (
        f"removing {ratio:.1%} of the {budget} is out of reach: {reach} {removed:.1%} can go. What holds the rest:\n"
        + "\n".join(lines)
        + "\nRemedy: change ratio, or leave more to be pruned with ignore=, keep= and align=."
    )
