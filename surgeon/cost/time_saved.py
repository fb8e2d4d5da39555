"""Weights for the damage of a cut by how little time it saves, derived from axes and costs, not from a model's kind.

- Of leaves whose product forms one axis of a weight, such as heads · head size or groups · channels per group, the
  outermost is cut first: removing heads saves time in proportion, making heads smaller saves half as much.
- Convolutions on fewer than 16 channels don't use the fast kernels, so wider groups are cut below 16 only late.
- Groups whose MACs take more time than other groups' (depthwise convolutions, which move more than they compute) are
  cut more, and groups that save almost nothing are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from surgeon.cost.alignment import NARROW, Alignment
from surgeon.cost.cost import Cost
from surgeon.groups.coupling import Groups

_HELD_NARROW = 3.0
_HELD_INNER = 4.0
_HELD_USELESS = 100.0


def for_speed(
    damages: Mapping[int, np.ndarray], groups: Groups, cost: Cost, budget: str, align: int | None
) -> dict[int, np.ndarray]:
    """The damages of keeping 1, 2, … units, by leaf, each multiplied by its weight for saving little time."""
    alignment, paces = Alignment(groups, cost), _paces(cost, budget)
    found = {}
    for group in groups:
        leaf = group.leaf.id
        held = np.full(group.size, 1 / paces[leaf])
        if leaf in alignment.inner:
            held *= _HELD_INNER
        unit = min(alignment.inside[leaf])
        if align is None and group.size * unit >= NARROW:
            held[np.arange(1, group.size + 1) * unit < NARROW] *= _HELD_NARROW
        found[leaf] = damages[leaf] * held
    return found


def _paces(cost: Cost, budget: str) -> dict[int, float]:
    """How readily each group is cut, by the time that its MACs take relative to others'; 0.01 if its share is small."""
    widths = cost.vector({})
    wanted, time = cost.polynomial(budget), cost.time
    shares = {leaf: -wanted.change(widths, cost.order[leaf], size // 2) for leaf, size in cost.sizes.items()}
    times = {leaf: -time.change(widths, cost.order[leaf], size // 2) for leaf, size in cost.sizes.items()}
    few = 0.05 * sum(shares.values()) / max(len(shares), 1)
    speed = sum(times.values()) / max(sum(shares.values()), 1e-9)
    paces = {}
    for leaf, share in shares.items():
        if share <= few:
            paces[leaf] = 1 / _HELD_USELESS
        elif budget == "macs":
            paces[leaf] = float(np.clip(times[leaf] / share / speed, 0.5, 2.0)) ** 0.5
        else:
            paces[leaf] = 1.0
    return paces
