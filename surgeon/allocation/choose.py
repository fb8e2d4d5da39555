"""Which units are kept, once it is known how many."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from surgeon.groups.coupling import Groups


def choose(groups: Groups, scores: Mapping[int, np.ndarray], widths: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """The best units of each leaf that gets narrower, ascending; of equals, the first.

    >>> from surgeon.scoring.weight_criteria import _example
    >>> groups, group = _example()
    >>> choose(groups, {group.leaf.id: np.array([1.0, 2.0])}, {group.leaf.id: 1}) == {group.leaf.id: (1,)}
    True
    """
    kept = {}
    for group in groups:
        width = widths.get(group.leaf.id, group.size)
        if width < group.size:
            best = np.argsort(-scores[group.leaf.id], kind="stable")[:width]
            kept[group.leaf.id] = tuple(sorted(best.tolist()))
    return kept
