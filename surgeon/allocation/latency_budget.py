"""The width of every group for a latency in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from surgeon.allocation.damage_curves import damages
from surgeon.allocation.limits import LEAST_SHARE, cost_factors, floors, held_up, nothing_to_prune
from surgeon.cost.cost import Cost
from surgeon.cost.tied import Tied
from surgeon.errors import Infeasible
from surgeon.groups.coupling import Groups
from surgeon.groups.ties import Ties
from surgeon.latency.filling import filled_up
from surgeon.latency.tied import TiedLatency
from surgeon.solver.factors import LatencyModel, scaled, total
from surgeon.solver.problem import Budget
from surgeon.solver.solve import Allocation, solve
from surgeon.support.arguments import ABOVE_ZERO, MinWidth, optional

# How often the factors are scaled to the latency of the whole at most, and the relative difference that is ignored.
_ROUNDS = 5
_AGREE = 0.002
_USED = 0.99
_ROUNDING = 1e-9
# From this share of the latency on, no units are given back.
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
    ties: Ties | None = None,
) -> tuple[dict[int, int], Allocation]:
    """The width of every group, by leaf, with the least damage within `ms`; and the solver's result.

    Args:
        scores: a number for each unit, by leaf: `(units,)`.
        latency: the milliseconds of the same groups on some device.
        ms: how long the model may take, by `latency.ms`.
        min_width: the least that is kept of a group, as in `surgeon.allocation.allocate`. Groups that it does not name
            keep the share `LEAST_SHARE`, unless the budget can't be met otherwise.
        size: how many parameters the model may have in total, at the same time.
        curves: the damage of keeping only the best 1, 2, … units of a leaf; by default `damages` of the scores.
        ties: groups that keep the same share of their units, and groups that stay whole.

    Raises:
        InvalidArgument: an argument is out of range, or `min_width` names no group.
        NothingToPrune: there are no groups.
        Infeasible: a budget can't be met; the message says how far it could go and what holds the rest.
    """
    ms, size = ABOVE_ZERO("ms", ms), optional(ABOVE_ZERO)("size", size)
    least = floors(groups, min_width)
    if not groups.groups:
        raise nothing_to_prune(groups)
    sized = [Budget("size", "parameters", cost_factors(cost, "params"), size)] if size is not None else []
    curves = damages(groups, scores, cost) if curves is None else curves
    if ties:
        tied = Tied.of(groups, cost, ties)
        steps, found = allocate_latency(
            tied.groups, tied.scores(scores), tied.cost, TiedLatency(latency, ties), ms=ms,
            min_width=tied.floors(least) or None, size=size, curves=tied.curves(curves),
        )
        return ties.expand(steps), found
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
            found = _consistent(groups, widths, at, latency, ms, sized)
        except Infeasible as error:
            refused = error
            continue
        found = _filled(found, groups, widths, latency, ms, sized, curves)
        return found.widths, found
    assert refused is not None
    reached = least_ms(groups, latency, min_width)
    raise _with_remedy(refused, groups, least, reached if reached > ms else None, latency.ms({}))


def least_ms(
    groups: Groups, latency: LatencyModel, min_width: MinWidth = None, cost: Cost | None = None,
    ties: Ties | None = None,
) -> float:
    """The least milliseconds that any widths reach, each group at its floor."""
    least = floors(groups, min_width)
    if ties and cost is not None:
        tied = Tied.of(groups, cost, ties)
        return least_ms(tied.groups, TiedLatency(latency, ties), tied.floors(least) or None)
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
    """The allocation with the unused budget given to single groups, in the finest fast steps of the device."""
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

    The latency of a model is not quite a sum over its operators: how much stays in the caches depends on all of them.
    So the factors are scaled to the latency of the whole at the widths found, and the widths are solved for again.
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


def _with_remedy(
    error: Infeasible, groups: Groups, least: Mapping[int, int], reached: float | None, whole: float
) -> Infeasible:
    """The error with the widths that `min_width` holds and, if the latency can't be reached, the nearest that can."""
    nearest = []
    if reached is not None:
        share = math.floor(1e4 * (1 - reached / whole)) / 1e4
        nearest = [f"  the nearest that can be met: latency_ms={_up(reached)}, or the share {share:g}"]
    remedy = "Remedy: raise the budget, or relax ignore= or min_width=."
    return Infeasible("\n".join([str(error), *held_up(groups, least), *nearest, remedy]), error.reachable)


def _up(ms: float) -> str:
    """Milliseconds with four digits, rounded up.

    >>> _up(0.0123412), _up(12.341)
    ('0.01235', '12.35')
    """
    unit = 10.0 ** (math.floor(math.log10(ms)) - 3)
    return f"{math.ceil(ms / unit - _ROUNDING) * unit:.4g}"
