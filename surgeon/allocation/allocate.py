"""How many units of each group stay, so that a given share of a budget goes.

- `scope="global"` seeks the widths that do the least damage to the model within the budget (`least_damage`), by what
  the units' importance lets one guess of it (`damage`). Where units are worth alike, groups keep about the same share
  of them.
- `scope="local"` takes the same share of every group's units, whatever they are worth.
- `scope="isomorphic"` compares units with those of groups of the same structure alone, so that each structure loses the
  same share of its units (Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024, arXiv:2407.04616).

The last two, and the first where no widths meet the budget closely, step down ladders of widths (`rungs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgeon.allocation.damage_curves import damages
from surgeon.allocation.greedy import TOLERANCE, meet
from surgeon.allocation.limits import LEAST_SHARE, Keep, floors, nothing_to_prune
from surgeon.allocation.optimal import aligned_by_damage
from surgeon.allocation.rungs import Rungs
from surgeon.cost.alignment import FINENESS, NARROW
from surgeon.cost.cost import Cost
from surgeon.errors import Infeasible, InvalidArgument
from surgeon.groups.coupling import Groups

SCOPES = ("global", "local", "isomorphic")

# With 0, what computes for long for its MACs is nearly emptied before others are touched; from 1 on, time is lost.
_STEEPNESS = 0.5
_LISTED = 6


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
    >>> from surgeon.groups.coupling import couple
    >>> from surgeon.frontend.trace import trace
    >>> groups = couple(trace(nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 5)), torch.zeros(2, 10)))
    >>> scores = {groups.groups[0].leaf.id: np.ones(64)}
    >>> list(allocate(groups, scores, Cost(groups), ratio=0.5).values())
    [32]
    >>> list(allocate(groups, scores, Cost(groups), ratio=0.3, align=1).values())
    [44]
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
    rungs = Rungs(groups, scores, cost, budget, scope, align, tops)
    if budget == "channels":
        return _uniform(rungs, ratio, held)
    if scope == "global":
        harm = {leaf: each * rungs.held[leaf] for leaf, each in damages(groups, scores, cost, _STEEPNESS).items()}
        try:
            widths, missed = aligned_by_damage(
                groups, harm, cost, budget=budget, ratio=ratio, align=align, keep=keep, tops=tops
            )
        except Infeasible:
            missed = 1.0  # the ladders tell how far it could go
        if missed <= TOLERANCE:
            return widths
    best: tuple[float, dict[int, int]] | None = None
    for finest in FINENESS if align is None else (align,):
        for least in (LEAST_SHARE, 0.0):
            widths, error = meet(cost, budget, ratio, rungs.ladders(finest, least, held))
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


def _uniform(rungs: Rungs, ratio: float, floors: Mapping[int, int]) -> dict[int, int]:
    """The same share of each group's units, to the nearest width that is allowed."""
    found, held = {}, []
    for ladder in rungs.ladders(NARROW, 0.0, {}):
        group = ladder.group
        wanted = (1 - ratio) * group.size
        width = min(ladder.widths, key=lambda width, wanted=wanted: (abs(width - wanted), width))  # type: ignore[misc]
        floor = floors.get(group.leaf.id, 1)
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
