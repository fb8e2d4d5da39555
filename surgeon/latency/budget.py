"""A width of every group for a latency in milliseconds, by what the units are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from surgeon.cost import Cost
from surgeon.coupling import Groups
from surgeon.errors import Infeasible, InvalidArgument
from surgeon.latency.factors import LatencyModel, polynomial_factors
from surgeon.latency.knapsack import Allocation, solve
from surgeon.latency.problem import Budget
from surgeon.limits import LEAST_SHARE, Keep, floors, nothing_to_prune, retained

#: How steeply the damage rises as a group's importance goes. At 0, the logarithm, the widths that a sum of damages
#: asks for would be inverse to what they cost, and dear groups would collapse; at 1 a group whose width costs 4 times
#: as much keeps half the share; where it is large, every group keeps the same share, whatever it costs. Of 0, 1/2, 1, 2
#: and 4, on the repository's three trained networks, 1 kept the most accuracy on the two convolutional ones.
STEEPNESS = 1.0

# Of the importance, this share is spread evenly over a group's units: what scores 0 is not removed without need.
_EVEN = 0.01
_LISTED = 6


def allocate_latency(
    groups: Groups,
    scores: Mapping[int, np.ndarray],
    cost: Cost,
    latency: LatencyModel,
    *,
    ms: float,
    keep: Keep = None,
    size: float | None = None,
) -> tuple[dict[int, int], Allocation]:
    """The width of every group, by leaf, that loses the least of the model within `ms`; and how it was found.

    Args:
        groups: what may be removed.
        scores: a number a unit, by leaf: `(units,)`.
        cost: the costs of the same groups.
        latency: the milliseconds of the same groups on some device.
        ms: how long the model may take, by `latency.factors`.
        keep: what is left of a group at least, as in `surgeon.allocation.allocate`. Groups that it does not name keep
            the share `LEAST_SHARE`, unless the budget can't be met so.
        size: how many parameters the model may have, all in all, beside.

    Raises:
        InvalidArgument: an argument is out of range, or `keep` names no group.
        NothingToPrune: there are no groups.
        Infeasible: a budget can't be met; the message says how far it could go and what holds the rest.
    """
    limits = {"latency": _check("ms", ms)} | ({} if size is None else {"size": _check("size", size)})
    least = floors(groups, keep)
    if not groups.groups:
        raise nothing_to_prune(groups)
    budgets = [Budget("latency", "ms", tuple(latency.factors), limits["latency"])]
    if size is not None:
        factors = [
            factor
            for share in cost.shares("params")
            for factor in polynomial_factors(share.terms, share.label)
        ]
        budgets.append(Budget("size", "parameters", tuple(factors), limits["size"]))
    curves = damages(groups, scores)
    refused: Infeasible | None = None
    for share in (LEAST_SHARE, 0.0):
        widths = {
            group.leaf.id: _candidates(
                latency, group.leaf.id, group.size, least.get(group.leaf.id, share * group.size)
            )
            for group in groups
        }
        at = {leaf: curves[leaf][np.array(each) - 1] for leaf, each in widths.items()}
        try:
            found = solve(widths, at, budgets, names=groups.names)
        except Infeasible as error:
            refused = error
            continue
        return found.widths, found
    assert refused is not None
    raise _with_remedy(refused, groups, least)


def damages(groups: Groups, scores: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """What keeping only the best 1, 2, … units of a group does to the model, by leaf: `(units,)`, 0 where all stay.

    The damage of a group that retains the share r of its importance is (r^-s - 1) / s, s the `STEEPNESS`, once for
    every operator that sums over its units: what a residual stream loses, each of its blocks is without. It is convex
    in r, so that losses are spread over groups, and without a limit as r goes to 0, so that none is emptied.
    """
    readers = _readers(groups)
    found = {}
    for group in groups:
        units = np.arange(1, group.size + 1) / group.size
        share = (1 - _EVEN) * retained(scores[group.leaf.id], group.size) + _EVEN * units
        share /= share[-1]
        found[group.leaf.id] = readers[group.leaf.id] * (share**-STEEPNESS - 1) / STEEPNESS
    return found


def _readers(groups: Groups) -> dict[int, int]:
    """How many operators sum over the units of each leaf."""
    count = {group.leaf.id: 0 for group in groups}
    for typed in groups.typed.values():
        for leaf in {leaf.id for axis in typed.contracted for leaf in groups.space.leaves(axis)}:
            if leaf in count:
                count[leaf] += 1
    return {leaf: max(readers, 1) for leaf, readers in count.items()}


def _candidates(latency: LatencyModel, leaf: int, size: int, floor: float) -> tuple[int, ...]:
    steps = {step for step in latency.steps(leaf) if math.ceil(floor) <= step <= size}
    return tuple(sorted(steps | {size}))


def _check(name: str, value: Any) -> float:
    number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise InvalidArgument(f"{name}={value!r}: give a number above 0")
    return float(value)


def _with_remedy(error: Infeasible, groups: Groups, least: Mapping[int, int]) -> Infeasible:
    held = [group for group in groups if least.get(group.leaf.id, 1) > 1]
    lines = [
        f"  keep= holds {group.name} at {least[group.leaf.id]} of {group.size}" for group in held[:_LISTED]
    ]
    remedy = "Remedy: raise the budget, or leave more to be pruned with ignore= and keep=."
    return Infeasible("\n".join([str(error), *lines, remedy]), error.reachable)
