"""The widths that do the least damage within a budget."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from functools import partial

import numpy as np

from surgeon.allocation.limits import LEAST_SHARE, choices, cost_factors, floors, nothing_to_prune
from surgeon.cost.alignment import FINENESS, Alignment
from surgeon.cost.cost import Cost
from surgeon.cost.target import TOLERANCE, Target
from surgeon.errors import Infeasible
from surgeon.groups.coupling import Groups
from surgeon.solver.problem import Budget
from surgeon.solver.solve import solve
from surgeon.support.arguments import MinWidth

# Moves of a group, in steps of its widths, to use more of a budget, and how many pairs of moves are tried.
_MOVES = (-3, -2, -1, 1, 2, 3)
_TRIES = 100


def allocate_by_damage(
    groups: Groups, damages: Mapping[int, np.ndarray], cost: Cost, *, budget: str = "macs", ratio: float = 0.5,
    steps: Mapping[int, int] | None = None, min_width: MinWidth = None, tops: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """The widths, by leaf, that do the least damage of all that remove at least `ratio` of the budget.

    If they leave more of the budget unused than the tolerance, widths near them are taken that don't, if there are any.

    Args:
        damages: the damage of keeping 1, 2, … units of a leaf, never increasing: `(units,)`.
        budget: "macs" or "params".
        steps: the width of a leaf must be a multiple of this, by default 1. The full width is always allowed.
        min_width: the least that is kept of a group, as for `surgeon.shrink`.
        tops: the most that is kept of a leaf; that width is always allowed too.

    Raises:
        InvalidArgument: `min_width` is out of range, or names no group.
        NothingToPrune: there are no groups.
        Infeasible: the budget can't be met.
    """
    held = floors(groups, min_width)
    if not groups.groups:
        raise nothing_to_prune(groups)
    target = Target(cost, budget, ratio)
    limits = [Budget("budget", budget, cost_factors(cost, budget), target.limit, (1 - TOLERANCE) * target.limit)]
    for least in (LEAST_SHARE, 0.0):
        widths = _within(target, choices(groups, held, least, steps or {}, tops or {}))
        at = {leaf: np.asarray(damages[leaf])[np.array(each) - 1] for leaf, each in widths.items()}
        try:
            found = solve(widths, at, limits, names=groups.names)
        except Infeasible:
            if least == 0.0:
                raise
        else:
            return _filled(target, found.widths, widths, damages)
    raise AssertionError("the last share is 0")


def aligned_by_damage(
    groups: Groups, damages: Mapping[int, np.ndarray], cost: Cost, *, budget: str, ratio: float, align: int | None,
    min_width: MinWidth, tops: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """The same at the coarsest default alignment that uses all but 2 % of the budget, or at `align`.

    If none does, at the finest: no group can be one step wider.

    Raises:
        Infeasible: the budget can't be met.
    """
    alignment, target = Alignment(groups, cost), Target(cost, budget, ratio)
    widths: dict[int, int] | None = None
    for finest in FINENESS if align is None else (align,):
        steps = alignment.steps(align, finest)
        try:
            widths = allocate_by_damage(
                groups, damages, cost, budget=budget, ratio=ratio, steps=steps, min_width=min_width, tops=tops
            )
        except Infeasible as error:
            refused = error
            continue
        if target.unused(widths) <= TOLERANCE:
            break
    if widths is None:
        raise refused
    return widths


def _within(target: Target, widths: Mapping[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """The widths that fit the budget when all other groups are at their least."""
    cost, polynomial = target.cost, target.polynomial
    least = cost.vector({leaf: each[0] for leaf, each in widths.items()})
    free = target.limit - polynomial(least)
    found = {}
    for leaf, each in widths.items():
        change = partial(polynomial.change, least, cost.order[leaf])
        found[leaf] = each[: max(1, bisect.bisect_right(each, free, key=change))]
    return found


def _filled(
    target: Target, start: Mapping[int, int], widths: Mapping[int, tuple[int, ...]], damages: Mapping[int, np.ndarray]
) -> dict[int, int]:
    """`start`, or, if more than the tolerance is unused there, widths one or two moves away with the least damage.

    If there are none, single steps up are taken, the largest first, until the next would exceed the budget.
    """
    found, polynomial = dict(start), target.polynomial
    while target.unused(found) > TOLERANCE:
        now = target.cost.vector(found)
        free = target.limit - polynomial(now)
        at = {leaf: each.index(found[leaf]) for leaf, each in widths.items()}
        moves = [
            (leaf, each[at[leaf] + by])
            for leaf, each in widths.items() for by in _MOVES if 0 <= at[leaf] + by < len(each)
        ]
        changes = np.array([polynomial.change(now, target.cost.order[leaf], width) for leaf, width in moves])
        up = np.array([width > found[leaf] for leaf, width in moves], dtype=bool)
        harms = np.array([damages[leaf][width - 1] - damages[leaf][found[leaf] - 1] for leaf, width in moves])
        close = _closing(target, found, moves, changes, harms)
        if close is not None:
            return close
        fitting = np.where(up & (changes <= free), changes, 0.0)
        if not fitting.any():
            break
        leaf, width = moves[int(np.argmax(fitting))]
        found[leaf] = width
    return found


def _closing(
    target: Target, widths: Mapping[int, int], moves: list[tuple[int, int]], changes: np.ndarray, harms: np.ndarray
) -> dict[int, int] | None:
    """The widths after the move, or pair of moves, that meets the budget with the least damage."""
    if not moves:
        return None
    free = target.limit * target.unused(widths)
    spare = TOLERANCE * target.limit
    owner = np.array([leaf for leaf, _ in moves])
    # The last row and column stand for no move.
    change, harm = (np.append(each, 0.0) for each in (changes, harms))
    left = free - change[:, None] - change[None]
    joint = np.where((left >= -spare) & (left <= 2 * spare), harm[:, None] + harm[None], np.inf)
    joint[:-1, :-1][owner[:, None] == owner[None]] = np.inf
    for flat in np.argsort(joint, axis=None)[:_TRIES]:
        if not np.isfinite(joint.flat[flat]):
            break
        chosen = [moves[index] for index in divmod(int(flat), len(change)) if index < len(moves)]
        trial = {**widths, **dict(chosen)}
        # Only now is it known how two moves of groups that share an operator change the cost together.
        if 0 <= target.unused(trial) <= TOLERANCE:
            return trial
    return None
