"""A width of every group for a latency in milliseconds, by what the units are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from surgeon.allocation.damage_curves import damages
from surgeon.allocation.limits import LEAST_SHARE, floors, nothing_to_prune
from surgeon.cost.cost import Cost
from surgeon.errors import Infeasible, InvalidArgument
from surgeon.groups.coupling import Groups
from surgeon.latency.filling import filled_up
from surgeon.solver.factors import LatencyModel, polynomial_factors, scaled, total
from surgeon.solver.problem import Budget
from surgeon.solver.solve import Allocation, solve
from surgeon.support.arguments import MinWidth

# Up to how many times the factors are scaled to the latency of the whole, and from what share of it they differ.
_ROUNDS = 5
_AGREE = 0.002
_USED = 0.99
_ROUNDING = 1e-9
_LISTED = 6
# From what share of the latency on nothing is given back.
_FULL = 0.99


def allocate_latency(
    groups: Groups,
    scores: Mapping[int, np.ndarray],
    cost: Cost,
    latency: LatencyModel,
    *,
    ms: float,
    min_width: MinWidth = None,
    size: float | None = None,
    curves: Mapping[int, np.ndarray] | None = None,
) -> tuple[dict[int, int], Allocation]:
    """The width of every group, by leaf, that loses the least of the model within `ms`; and how it was found.

    Args:
        groups: what may be removed.
        scores: a number a unit, by leaf: `(units,)`.
        cost: the costs of the same groups.
        latency: the milliseconds of the same groups on some device.
        ms: how long the model may take, by `latency.ms`.
        min_width: what is left of a group at least, as in `surgeon.allocation.allocate`. Groups that it does not name
            keep the share `LEAST_SHARE`, unless the budget can't be met so.
        size: how many parameters the model may have, all in all, at the same time.
        curves: what keeping the best 1, 2, … units of a leaf does to the model; by default `damages` of the scores.

    Raises:
        InvalidArgument: an argument is out of range, or `min_width` names no group.
        NothingToPrune: there are no groups.
        Infeasible: a budget can't be met; the message says how far it could go and what holds the rest.
    """
    limits = {"latency": _check("ms", ms)} | ({} if size is None else {"size": _check("size", size)})
    least = floors(groups, min_width)
    if not groups.groups:
        raise nothing_to_prune(groups)
    sized: list[Budget] = []
    if size is not None:
        factors = [
            factor
            for share in cost.shares("params")
            for factor in polynomial_factors(share.terms, share.label)
        ]
        sized = [Budget("size", "parameters", tuple(factors), limits["size"])]
    curves = damages(groups, scores, cost) if curves is None else curves
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
            found = _consistent(groups, widths, at, latency, limits["latency"], sized)
        except Infeasible as error:
            refused = error
            continue
        found = _filled(found, groups, widths, latency, limits["latency"], sized, curves)
        return found.widths, found
    assert refused is not None
    reached = least_ms(groups, latency, min_width)
    raise _with_remedy(refused, groups, least, reached if reached > limits["latency"] else None, latency.ms({}))


def least_ms(groups: Groups, latency: LatencyModel, min_width: MinWidth = None) -> float:
    """The least milliseconds that any widths reach, each group at its floor."""
    least = floors(groups, min_width)
    return latency.ms({
        group.leaf.id: _candidates(latency, group.leaf.id, group.size, least.get(group.leaf.id, 0.0))[0]
        for group in groups
    })


def _filled(
    found: Allocation,
    groups: Groups,
    candidates: Mapping[int, tuple[int, ...]],
    latency: LatencyModel,
    ms: float,
    others: list[Budget],
    curves: Mapping[int, np.ndarray],
) -> Allocation:
    """With what it leaves of the budget given to single groups, in steps as fine as the device has them."""
    if found.ms >= _FULL * ms:
        return found

    def fits(widths: Mapping[int, int]) -> bool:
        return latency.ms(widths) <= ms * (1 + _ROUNDING) and all(
            total(budget.factors, widths) <= budget.limit for budget in others
        )

    steps = {
        group.leaf.id: sorted({
            *candidates[group.leaf.id],
            *(step for step in latency.finest(group.leaf.id) if step >= candidates[group.leaf.id][0]),
        })
        for group in groups
    }
    widths = filled_up(found.widths, steps, curves, fits)
    damage = sum(float(curves[leaf][width - 1]) for leaf, width in widths.items())
    gap = found.gap
    if found.bound:
        gap = max(0.0, (damage - found.bound) / found.bound)
    return replace(found, widths=widths, ms=latency.ms(widths), damage=damage, gap=gap)


def _consistent(
    groups: Groups,
    candidates: Mapping[int, tuple[int, ...]],
    damage: Mapping[int, np.ndarray],
    latency: LatencyModel,
    ms: float,
    others: list[Budget],
) -> Allocation:
    """An allocation whose latency as a whole is `ms`, or just below it.

    What a model takes is not quite a sum over its operators: how much of it stays in the cache depends on all of it. So
    the factors are scaled to the whole at the widths that they led to, and those are sought again.
    """
    tried: list[Allocation] = []
    low = {leaf: each[0] for leaf, each in candidates.items()}
    scale = 1.0
    for attempt in range(_ROUNDS):
        budget = Budget("latency", "ms", scaled(latency.factors, scale), ms)
        try:
            found = solve(candidates, damage, [budget, *others], names=groups.names)
        except Infeasible:
            whole = latency.ms(low) / total(latency.factors, low)
            if tried:
                break
            if attempt or whole >= scale:
                raise
            scale = whole
            continue
        summed, actual = found.ms, latency.ms(found.widths)
        tried.append(replace(found, ms=actual))
        fits = actual <= ms * (1 + _ROUNDING)
        if fits and (actual >= _USED * ms or abs(summed - actual) <= _AGREE * actual or found.damage == 0):
            break
        scale *= actual / summed * (1.0 if fits else 1 + _AGREE * 2**attempt)
    within = [each for each in tried if each.ms <= ms * (1 + _ROUNDING)]
    if within:
        return min(within, key=lambda each: each.damage)
    nearest = min(tried, key=lambda each: each.ms)
    least = min(nearest.ms, latency.ms(low))
    raise Infeasible(
        f"a latency of {ms:.4g} ms is out of reach: the widths come to {least:.4g} of {latency.ms({}):.4g} ms at least",
        reachable=1 - least / latency.ms({}),
    )


def _candidates(latency: LatencyModel, leaf: int, size: int, floor: float) -> tuple[int, ...]:
    steps = {step for step in latency.steps(leaf) if math.ceil(floor) <= step <= size}
    return tuple(sorted(steps | {size}))


def _check(name: str, value: Any) -> float:
    number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise InvalidArgument(f"{name}={value!r}: give a number above 0")
    return float(value)


def _with_remedy(
    error: Infeasible, groups: Groups, least: Mapping[int, int], reached: float | None, whole: float
) -> Infeasible:
    """The error with what holds widths and, where it is the latency that is out of reach, the nearest in reach."""
    nearest = []
    if reached is not None:
        share = math.floor(1e4 * (1 - reached / whole)) / 1e4
        nearest = [f"  the nearest that can be met: latency_ms={_up(reached)}, or the share {share:g}"]
    held = [group for group in groups if least.get(group.leaf.id, 1) > 1]
    lines = [
        f"  min_width= holds {group.name} at {least[group.leaf.id]} of {group.size}" for group in held[:_LISTED]
    ]
    remedy = "Remedy: raise the budget, or relax ignore= or min_width=."
    return Infeasible("\n".join([str(error), *lines, *nearest, remedy]), error.reachable)


def _up(ms: float) -> str:
    """Milliseconds of four digits, rounded up.

    >>> _up(0.0123412), _up(12.341)
    ('0.01235', '12.35')
    """
    unit = 10.0 ** (math.floor(math.log10(ms)) - 3)
    return f"{math.ceil(ms / unit - _ROUNDING) * unit:.4g}"
