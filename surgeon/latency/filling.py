"""Fills up a budget: single groups are widened, a step at a time, until none fits any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np


def filled_up(
    widths: Mapping[int, int],
    steps: Mapping[int, Sequence[int]],
    curves: Mapping[int, np.ndarray],
    fits: Callable[[Mapping[int, int]], bool],
) -> dict[int, int]:
    """Widths at which no leaf can take its next step up within the budgets.

    Args:
        widths: where to start, by leaf.
        steps: the widths that each leaf can have, ascending.
        curves: the damage of keeping 1, 2, … units of a leaf; the leaf where it falls most goes first.
        fits: whether widths are within the budgets.

    >>> filled_up({0: 8, 1: 8}, {0: (8, 16), 1: (8, 16, 24)}, {0: np.ones(16), 1: np.arange(24, 0, -1)},
    ...           lambda at: sum(at.values()) <= 30)
    {0: 8, 1: 16}
    """
    found, open_ = dict(widths), set(widths)
    while open_:
        ahead = {leaf: [step for step in steps[leaf] if step > found[leaf]][:1] for leaf in open_}
        wider = {leaf: step[0] for leaf, step in ahead.items() if step}
        gains = {leaf: float(curves[leaf][found[leaf] - 1] - curves[leaf][step - 1]) for leaf, step in wider.items()}
        open_ = set(wider)
        for leaf in sorted(wider, key=lambda each: (-gains[each], each)):
            tried = {**found, leaf: wider[leaf]}
            if fits(tried):
                found = tried
                break
            open_.discard(leaf)
    return found
