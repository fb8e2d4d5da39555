"""The damage of removing units, estimated from their importance alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from surgeon.allocation.limits import retained
from surgeon.cost.cost import Cost
from surgeon.groups.coupling import Groups

# This share of the importance is spread evenly over a group's units, so that units that score 0 count for something.
_EVEN = 0.01


def damages(
    groups: Groups, scores: Mapping[int, np.ndarray], cost: Cost, steepness: float = 0.0
) -> dict[int, np.ndarray]:
    """The damage of keeping only the best 1, 2, … units of a group, by leaf: `(units,)`, 0 where all are kept.

    The damage of a group that retains the share r of its importance is -log r, so that losses are spread over groups,
    and none is emptied. With the steepness s it is (r^-s - 1) / s, which spreads them more evenly. It is weighted by
    the share of the model's MACs that depend on the group: all blocks on a residual stream lose what it loses; and if
    all groups counted the same, those with the most MACs would be cut the deepest, since they cost most.
    """
    stakes = _stakes(cost)
    found = {}
    for group in groups:
        units = np.arange(1, group.size + 1) / group.size
        share = (1 - _EVEN) * retained(scores[group.leaf.id], group.size) + _EVEN * units
        lost = -np.log(share / share[-1])
        found[group.leaf.id] = stakes[group.leaf.id] * (np.expm1(steepness * lost) / steepness if steepness else lost)
    return found


def _stakes(cost: Cost) -> dict[int, float]:
    """For each leaf, the relative change of the model's MACs by that of its width."""
    found = dict.fromkeys(cost.sizes, 0.0)
    whole = cost.macs({})
    for share in cost.shares("macs"):
        for leaves, factor in share.terms.items():
            part = factor * math.prod(cost.sizes[leaf] for leaf in leaves) / whole
            for leaf in leaves:
                found[leaf] += part
    # groups without MACs still count for something
    return {leaf: stake or 1.0 / len(found) for leaf, stake in found.items()}
