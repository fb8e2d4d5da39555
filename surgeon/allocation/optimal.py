"""The widths that do the least damage of all that fit a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from surgeon.allocation.limits import LEAST_SHARE, allowed, floors, nothing_to_prune
from surgeon.cost.alignment import FINENESS, Alignment
from surgeon.cost.cost import Cost
from surgeon.cost.target import TOLERANCE, Target
from surgeon.errors import Infeasible
from surgeon.groups.coupling import Groups
from surgeon.solver.factors import polynomial_factors
from surgeon.solver.problem import Budget
from surgeon.solver.solve import solve
from surgeon.support.arguments import MinWidth

# By how many of its widths a group is moved to use more of a budget, and pairs of moves that are tried.
_MOVES = (-3, -2, -1, 1, 2, 3)
_TRIES = 100


def allocate_by_damage(
    groups: Groups, damages: Mapping[int, np.ndarray], cost: Cost, *, budget: str = "macs", ratio: float = 0.5,
    steps: Mapping[int, int] | None = None, min_width: MinWidth = None, tops: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """The widths, by leaf, that do the least damage of all that remove at least `ratio` of the budget.

    Where they leave more of the budget unused than the tolerance, others near them are taken that do not, if there are.

    Args:
        groups: what may be removed.
        damages: what keeping 1, 2, … units of a leaf does, not rising: `(units,)`.
        cost: the costs of the same groups.
        budget: "macs" or "params".
        ratio: the share to remove.
        steps: what the width of a leaf must be a multiple of; by default any width will do. The full width always does.
        min_width: what is left of a group at least, as for `surgeon.shrink`.
        tops: what is left of a leaf at most; that width is always allowed too.

    Raises:
        InvalidArgument: `min_width` is out of range, or names no group.
        NothingToPrune: there are no groups.
        Infeasible: the budget can't be met.
    """
    held = floors(groups, min_width)
    if not groups.groups:
        raise nothing_to_prune(groups)
    factors = [factor for share in cost.shares(budget) for factor in polynomial_factors(share.terms, share.label)]
    target = Target(cost, budget, ratio)
    limits = [Budget("budget", budget, tuple(factors), target.limit, (1 - TOLERANCE) * target.limit)]
    for least in (LEAST_SHARE, 0.0):
        widths = {
            group.leaf.id: allowed(
                (tops or {}).get(group.leaf.id, group.size), (steps or {}).get(group.leaf.id, 1),
                held.get(group.leaf.id, max(1, math.ceil(least * group.size))),
            )
            for group in groups
        }
        widths = _within(target, widths)
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
    """The same at the coarsest default alignment that uses all but 2 % of what may be left, or at `align`.

    Where none does, at the finest: no group can take one more step.

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
    """The widths that fit the budget where all other groups are at their least."""
    cost, polynomial = target.cost, target.polynomial
    least = cost.vector({leaf: each[0] for leaf, each in widths.items()})
    free = target.limit - polynomial(least)
    found = {}
    for leaf, each in widths.items():
        low, high = 1, len(each)
        while low < high:
            middle = (low + high + 1) // 2
            if polynomial.change(least, cost.order[leaf], each[middle - 1]) <= free:
                low = middle
            else:
                high = middle - 1
        found[leaf] = each[:low]
    return found


def _filled(
    target: Target, start: Mapping[int, int], widths: Mapping[int, tuple[int, ...]], damages: Mapping[int, np.ndarray]
) -> dict[int, int]:
    """`start`, if more than the tolerance is unused there, after the one or two moves that end that with least damage.

    Where there are none, single steps up are taken, the largest first, until the next would exceed the budget.
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
    """The widths after the move, or the pair of moves, that does the least damage of those that meet the budget."""
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
        # What two moves of groups that share an operator change together is only known now.
        if 0 <= target.unused(trial) <= TOLERANCE:
            return trial
    return None
