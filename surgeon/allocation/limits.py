"""Limits on widths, and the errors for models where nothing can be removed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np
import torch

from surgeon.cost.cost import Cost
from surgeon.errors import InvalidArgument, NothingToPrune
from surgeon.groups.coupling import Groups
from surgeon.solver.factors import Factor, polynomial_factors
from surgeon.support import arguments
from surgeon.support.arguments import MinWidth

#: The share of a group's units that is kept unless the budget can't be met otherwise, so that no layer collapses.
LEAST_SHARE = 0.125

_LISTED = 6


def floors(groups: Groups, min_width: MinWidth) -> dict[int, int]:
    """The least widths by leaf, from `min_width`: a share (float) or a width (int), for all groups or by glob.

    Raises:
        InvalidArgument: a value is out of range, or a glob names no group.
    """
    if min_width is None:
        return {}
    least_widths = arguments.min_width("min_width", min_width)
    wanted = least_widths if isinstance(least_widths, Mapping) else {"*": least_widths}
    found: dict[int, int] = {}
    for pattern, value in wanted.items():
        matched = [group for group in groups if fnmatchcase(group.name, pattern)]
        if not matched and isinstance(min_width, Mapping):
            names = ", ".join(group.name for group in groups.groups[:8])
            raise InvalidArgument(f"min_width: no group is named {pattern!r}; there are {names}, …")
        for group in matched:
            least = value if isinstance(value, int) else max(1, math.ceil(value * group.size - 1e-9))
            found[group.leaf.id] = max(found.get(group.leaf.id, 1), min(least, group.size))
    return found


def allowed(top: int, step: int, floor: int) -> tuple[int, ...]:
    """The widths that a group can take: multiples of `step` from `floor` to below `top`, and `top` itself.

    >>> allowed(20, 8, 1), allowed(20, 8, 9), allowed(20, 32, 1)
    ((8, 16, 20), (16, 20), (20,))
    """
    return (*(width for width in range(step, top, step) if width >= floor), top)


def choices(
    groups: Groups, held: Mapping[int, int], least: float, steps: Mapping[int, int], tops: Mapping[int, int]
) -> dict[int, tuple[int, ...]]:
    """The widths that each group may take, by leaf: multiples of its step, from its floor to its top.

    A group that `held` gives no floor keeps the share `least` of its units.
    """
    return {
        leaf.id: allowed(
            tops.get(leaf.id, leaf.size), steps.get(leaf.id, 1), held.get(leaf.id, max(1, math.ceil(least * leaf.size)))
        )
        for leaf in (group.leaf for group in groups)
    }


def retained(scores: np.ndarray, size: int) -> np.ndarray:
    """The share of the importance that the best 1, 2, … units hold together, `(size,)`.

    >>> retained(np.array([1.0, 3.0]), 2).tolist()
    [0.75, 1.0]
    """
    total = scores.sum()
    if not total > 0:
        return np.arange(1, size + 1) / size
    return np.minimum(np.cumsum(np.sort(scores)[::-1]) / total, 1.0)


def held_up(groups: Groups, least: Mapping[int, int]) -> list[str]:
    """The groups that `min_width` keeps at a least width, as lines of a message."""
    held = [group for group in groups if least.get(group.leaf.id, 1) > 1]
    return [f"  min_width= holds {group.name} at {least[group.leaf.id]} of {group.size}" for group in held[:_LISTED]]


def cost_factors(cost: Cost, budget: str) -> tuple[Factor, ...]:
    """The cost of a budget as factors for the solver."""
    return tuple(factor for share in cost.shares(budget) for factor in polynomial_factors(share.terms, share.label))


def nothing_to_prune(groups: Groups) -> NothingToPrune:
    """The error for a model without groups, with the largest pinned axes and their reasons."""
    pins = sorted(groups.pinned, key=lambda pin: -pin.size)[:_LISTED]
    lines = [f"  {pin.tensor} axis {pin.axis} ({pin.size}): {pin.reason}" for pin in pins]
    text = "\n".join(lines or [f"  {_no_parameters(groups)}"])
    return NothingToPrune(f"nothing can be pruned, every axis is pinned:\n{text}")


def _no_parameters(groups: Groups) -> str:
    for name, value in groups.graph.values.items():
        if value.dtype in (torch.int8, torch.uint8) and value.dim() > 1:
            kind = str(value.dtype).removeprefix("torch.")
            return f"the weights are integers, such as {name} ({kind}): prune the model before it is quantized"
    return "the model has no parameters"
