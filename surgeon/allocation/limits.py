"""What stays of every group at least, what its best units hold of its importance, and why nothing can go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from surgeon.errors import InvalidArgument, NothingToPrune
from surgeon.groups.coupling import Groups

Keep = float | int | Mapping[str, float | int] | None

#: The share of a group's units that stays unless the budget can't be met otherwise: a layer never collapses unasked.
LEAST_SHARE = 0.125

_LISTED = 6


def floors(groups: Groups, keep: Keep) -> dict[int, int]:
    """The least width that `keep` asks for, by leaf: a share (float) or a width (int), for all groups or by glob.

    Raises:
        InvalidArgument: a value is out of range, or a glob names no group.
    """
    if keep is None:
        return {}
    wanted = keep if isinstance(keep, Mapping) else {"*": keep}
    found: dict[int, int] = {}
    for pattern, value in wanted.items():
        matched = [group for group in groups if fnmatchcase(group.name, pattern)]
        if not matched and isinstance(keep, Mapping):
            names = ", ".join(group.name for group in groups.groups[:8])
            raise InvalidArgument(f"keep: no group is named {pattern!r}; there are {names}, …")
        for group in matched:
            least = min(_least(value, group.size), group.size)
            found[group.leaf.id] = max(found.get(group.leaf.id, 1), least)
    return found


def retained(scores: np.ndarray, size: int) -> np.ndarray:
    """The share of the importance that the best 1, 2, … units hold together, `(size,)`.

    >>> retained(np.array([1.0, 3.0]), 2).tolist()
    [0.75, 1.0]
    """
    total = scores.sum()
    if not total > 0:
        return np.arange(1, size + 1) / size
    return np.minimum(np.cumsum(np.sort(scores)[::-1]) / total, 1.0)


def nothing_to_prune(groups: Groups) -> NothingToPrune:
    """The error for a model without groups, with the largest pinned axes and their reasons."""
    pins = sorted(groups.pinned, key=lambda pin: -pin.size)[:_LISTED]
    lines = [f"  {pin.tensor} axis {pin.axis} ({pin.size}): {pin.reason}" for pin in pins]
    text = "\n".join(lines or ["  the model has no parameters"])
    return NothingToPrune(f"nothing can be pruned, every axis is pinned:\n{text}")


def _least(value: Any, size: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, float) and 0 <= value <= 1:
        return max(1, math.ceil(value * size - 1e-9))
    raise InvalidArgument(
        f"keep={value!r}: give a share from 0.0 to 1.0, or a width as an integer of at least 1"
    )
