"""What removing units does to a model, guessed from their importance alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from surgeon.allocation.limits import retained
from surgeon.cost.cost import Cost
from surgeon.groups.coupling import Groups

# Of the importance, this share is spread evenly over a group's units: what scores 0 is not removed without need.
_EVEN = 0.01


def damages(
    groups: Groups, scores: Mapping[int, np.ndarray], cost: Cost, steepness: float = 0.0
) -> dict[int, np.ndarray]:
    """What keeping only the best 1, 2, … units of a group does to the model, by leaf: `(units,)`, 0 where all stay.

    The damage of a group that retains the share r of its importance is -log r: losses are spread over groups, and none
    is emptied. The steepness s makes of it (r^-s - 1) / s, which spreads them more evenly. It counts by the share of
    the model's MACs that go when the group goes: what a residual stream loses, each of its blocks is without; and where
    all groups counted alike, those that compute the most would be cut the deepest, for being dear.

    Args:
        groups: what may be removed.
        scores: a number a unit, by leaf: `(units,)`.
        cost: the costs of the same groups.
        steepness: at least 0.
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
    # what nothing multiplies still has a worth
    return {leaf: stake or 1.0 / len(found) for leaf, stake in found.items()}
