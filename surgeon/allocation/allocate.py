"""How many units of each group are kept, so that a given share of a budget is removed.

- `scope="global"` looks for the widths that do the least damage to the model within the budget (`optimal`), as
  measured on data, or as estimated from the units' importance (`damage_curves`). Where all units are worth the same,
  groups keep about the same share of them.
- `scope="local"` removes the same share of every group's units, whatever they are worth.
- `scope="isomorphic"` compares units only with those of groups of the same structure, so that each structure loses the
  same share of its units (Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024, arXiv:2407.04616).

The last two, and a share of the channels, follow greedy width schedules (`greedy`).

A budget is met or refused. Met: at most what the ratio allows is left, and at least 98 % of that, or less by no more
than one step of one group's widths. Refused: more is left although every group is at its least width (`reach`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from surgeon.allocation.damage_curves import damages
from surgeon.allocation.greedy import meet, places_of, schedule
from surgeon.allocation.limits import LEAST_SHARE, choices, floors, nothing_to_prune
from surgeon.allocation.optimal import aligned_by_damage
from surgeon.allocation.reach import check_reach
from surgeon.cost.alignment import FINENESS, Alignment
from surgeon.cost.cost import Cost
from surgeon.cost.target import TOLERANCE, Target
from surgeon.cost.tied import Tied
from surgeon.cost.time_saved import for_speed
from surgeon.groups.coupling import Groups
from surgeon.groups.ties import Ties
from surgeon.support.arguments import POSITIVE, SCOPES, SHARE, MinWidth, choice, optional

# With 0, groups that are slow for their MACs are nearly emptied before others are touched; from 1 on, time is lost.
_STEEPNESS = 0.5


def allocate(
    groups: Groups,
    scores: Mapping[int, np.ndarray],
    cost: Cost,
    *,
    budget: str = "macs",
    ratio: float = 0.5,
    scope: str = "global",
    align: int | None = None,
    min_width: MinWidth = None,
    ceilings: Mapping[int, int] | None = None,
    curves: Mapping[int, np.ndarray] | None = None,
    ties: Ties | None = None,
    even: bool = False,
) -> dict[int, int]:
    """The width of every group, by the id of its leaf, so that `ratio` of the budget is removed.

    Args:
        groups: what may be removed.
        scores: a number for each unit, by leaf: `(units,)`.
        cost: the costs of the same groups.
        budget: "macs", "params", or "channels": the same share of each group's units, to the nearest width; where a
            group can't be made that narrow, the others lose more, so that it is that share of all units together.
        ratio: the share to remove, at least 0 and less than 1. No less is removed, and more by at most 2 % of what
            should be left, or by one step of one group's widths.
        scope: "global" compares groups by importance, "local" takes the same share of each, "isomorphic" the same share
            of all groups that are of one structure, of which it compares the units.
        align: widths are multiples of it, in channels, so that any number of heads of 64 is aligned. By default 16 for
            groups of 32 and more, 8 from 24, 4 from 8, and any width below; finer only where the budget can't be met
            otherwise. 1 allows every width. The full width is always allowed.
        min_width: the least that is kept of a group, a share (float) or a width (int), for all or by glob of names.
        ceilings: the most that is kept of a group, by leaf, such as after an earlier allocation.
        curves: the damage of keeping only the best 1, 2, … units of a leaf, `(units,)`, for the scope "global"; by
            default estimated from the scores.
        ties: groups that keep the same share of their units, and groups that stay whole.
        even: for the scope "local", groups of the same size keep the same number of units: a step is one of all of
            them, and no more is done to use up the budget.

    Raises:
        InvalidArgument: an argument is out of range, or `min_width` names no group.
        NothingToPrune: there are no groups.
        Infeasible: the budget can't be met; the message says what the nearest is that can, and what holds the rest.

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
    ratio = SHARE("ratio", ratio)
    cost.check(budget)
    choice(*SCOPES)("scope", scope)
    align = optional(POSITIVE)("align", align)
    held = floors(groups, min_width)
    if not groups.groups:
        raise nothing_to_prune(groups)
    if ties:
        return _tied(
            Tied.of(groups, cost, ties), scores, held, curves, ceilings, budget=budget, ratio=ratio, scope=scope,
            align=align, even=even,
        )
    tops = {group.leaf.id: group.size for group in groups} | dict(ceilings or {})
    if ratio == 0:
        return tops
    target, alignment = Target(cost, budget, ratio), Alignment(groups, cost)
    check_reach(target, alignment, align, min_width, tops)
    if scope == "global" and budget != "channels":
        if curves is None:
            curves = estimated(groups, scores, cost, budget, align)
        return aligned_by_damage(
            groups, curves, cost, budget=budget, ratio=ratio, align=align, min_width=min_width, tops=tops
        )
    places = places_of(groups, scores) if scope == "isomorphic" and budget != "channels" else {}
    inner = alignment.inner if budget != "channels" else ()
    for finest in FINENESS if align is None else (align,):
        steps = alignment.steps(align, finest)
        for least in (LEAST_SHARE, 0.0):
            may = choices(groups, held, least, steps, tops)
            schedules = [schedule(group, may[group.leaf.id], places, group.leaf.id in inner) for group in groups]
            widths = meet(target, schedules, refine=budget != "channels", even=even)
            if 0 <= target.unused(widths) <= TOLERANCE:
                return widths
            if target.unused(widths) > 0:
                break
    return widths


def estimated(
    groups: Groups, scores: Mapping[int, np.ndarray], cost: Cost, budget: str, align: int | None
) -> dict[int, np.ndarray]:
    """The damage of keeping only the best 1, 2, … units of a leaf, from their scores, where nothing better is known."""
    return for_speed(damages(groups, scores, cost, _STEEPNESS), groups, cost, budget, align)


def _tied(
    tied: Tied, scores: Mapping[int, np.ndarray], held: Mapping[int, int], curves: Mapping[int, np.ndarray] | None,
    ceilings: Mapping[int, int] | None, *, budget: str, ratio: float, scope: str, align: int | None,
    even: bool,
) -> dict[int, int]:
    if curves is None:
        curves = estimated(tied.whole, scores, tied.cost.whole, budget, align) if budget != "channels" else {}
    if not tied.groups.groups:
        raise nothing_to_prune(tied.whole)
    steps = allocate(
        tied.groups, tied.scores(scores), tied.cost, budget=budget, ratio=ratio, scope=scope, align=align,
        min_width=tied.floors(held) or None, ceilings=tied.ceilings(ceilings) if ceilings else None,
        curves=tied.curves(curves) if curves else None, even=even,
    )
    return tied.ties.expand(steps)
