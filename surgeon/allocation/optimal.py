"""The widths that do the least damage of all that fit a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from surgeon.allocation.greedy import TOLERANCE
from surgeon.allocation.limits import LEAST_SHARE, Keep, floors, nothing_to_prune
from surgeon.cost.alignment import FINENESS, Alignment
from surgeon.cost.cost import Cost
from surgeon.errors import Infeasible
from surgeon.groups.coupling import Groups
from surgeon.solver.factors import polynomial_factors
from surgeon.solver.problem import Budget
from surgeon.solver.solve import solve


def allocate_by_damage(
    groups: Groups, damages: Mapping[int, np.ndarray], cost: Cost, *, budget: str = "macs", ratio: float = 0.5,
    steps: Mapping[int, int] | None = None, keep: Keep = None, tops: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """The widths, by leaf, that do the least damage of all that remove at least `ratio` of the budget.

    Args:
        groups: what may be removed.
        damages: what keeping 1, 2, … units of a leaf does, not rising: `(units,)`.
        cost: the costs of the same groups.
        budget: "macs" or "params".
        ratio: the share to remove.
        steps: what the width of a leaf must be a multiple of; by default any width will do. The full width always does.
        keep: what is left of a group at least, as for `surgeon.shrink`.
        tops: what is left of a leaf at most; that width is always allowed too.

    Raises:
        InvalidArgument: `keep` is out of range, or names no group.
        NothingToPrune: there are no groups.
        Infeasible: the budget can't be met.
    """
    held = floors(groups, keep)
    if not groups.groups:
        raise nothing_to_prune(groups)
    factors = [factor for share in cost.shares(budget) for factor in polynomial_factors(share.terms, share.label)]
    limit = (1 - ratio) * cost.of(budget)({})
    for least in (LEAST_SHARE, 0.0):
        widths = {
            group.leaf.id: _candidates(
                (tops or {}).get(group.leaf.id, group.size), (steps or {}).get(group.leaf.id, 1),
                held.get(group.leaf.id, max(1, math.ceil(least * group.size))),
            )
            for group in groups
        }
        at = {leaf: np.asarray(damages[leaf])[np.array(each) - 1] for leaf, each in widths.items()}
        try:
            found = solve(widths, at, [Budget("budget", budget, tuple(factors), limit)], names=groups.names)
        except Infeasible:
            if least == 0.0:
                raise
        else:
            return found.widths
    raise AssertionError("the last share is 0")


def aligned_by_damage(
    groups: Groups, damages: Mapping[int, np.ndarray], cost: Cost, *, budget: str, ratio: float, align: int | None,
    keep: Keep, tops: Mapping[int, int] | None = None,
) -> tuple[dict[int, int], float]:
    """The same at the coarsest default alignment at which the budget is met within 2 %, or at `align`.

    Widths that remove up to 2 % too little are taken before the alignment gets finer. With the widths comes the share
    by which they miss what was asked for; that is above 2 % where no alignment comes closer.

    Raises:
        Infeasible: the budget can't be met.
    """
    whole = cost.of(budget)({})
    alignment = Alignment(groups, cost)
    best: tuple[dict[int, int], float] | None = None
    for finest in FINENESS if align is None else (align,):
        steps = alignment.steps(align, finest)
        for asked in (ratio, max(ratio - TOLERANCE, 0.0)):
            try:
                widths = allocate_by_damage(
                    groups, damages, cost, budget=budget, ratio=asked, steps=steps, keep=keep, tops=tops
                )
            except Infeasible as error:
                refused = error
                continue
            missed = abs(1 - cost.of(budget)(widths) / whole - ratio)
            if best is None or missed < best[1]:
                best = widths, missed
            if missed <= TOLERANCE:
                return best
    if best is None:
        raise refused
    return best


def _candidates(top: int, step: int, floor: int) -> tuple[int, ...]:
    return (*(width for width in range(step, top, step) if width >= floor), top)
