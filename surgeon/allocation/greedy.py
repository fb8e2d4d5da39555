"""Meets a budget by stepping down the ladders of widths of all groups, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from surgeon.cost.cost import Cost
from surgeon.groups.coupling import Group

#: How far the share that is removed may lie from the one asked for.
TOLERANCE = 0.02
_CLOSE = 0.002
_STRAIN = 0.01


@dataclass(frozen=True)
class Ladder:
    """The widths that a group may take, ascending, and the order in which stepping down to each is taken."""

    group: Group
    widths: tuple[int, ...]
    orders: np.ndarray


def meet(cost: Cost, budget: str, ratio: float, ladders: list[Ladder]) -> tuple[dict[int, int], float]:
    """The widths whose cost comes closest to the budget, and the share by which they miss it."""
    polynomial = cost.polynomial(budget)
    total = polynomial(cost.vector({}))
    target = (1 - ratio) * total
    rungs = sorted(
        (float(order), -width, place, index)
        for place, ladder in enumerate(ladders)
        for index, (width, order) in enumerate(zip(ladder.widths[:-1], ladder.orders[:-1], strict=True))
    )
    places = np.array([rung[2] for rung in rungs], dtype=np.int64)
    indices = np.array([rung[3] for rung in rungs], dtype=np.int64)
    top = np.array([len(ladder.widths) - 1 for ladder in ladders])

    def standing(count: int) -> np.ndarray:
        """The rung of each ladder after the first `count` rungs were taken."""
        found = top.copy()
        np.minimum.at(found, places[:count], indices[:count])
        return found

    low, high = 0, len(rungs)
    while low < high:
        middle = (low + high) // 2
        if polynomial(_widths(ladders, standing(middle))) <= target:
            high = middle
        else:
            low = middle + 1
    level = rungs[low - 1][0] if low else 0.0
    at = _refine(polynomial, target, total, ladders, standing(low), level)
    error = abs(polynomial(_widths(ladders, at)) - target) / total
    found = {ladder.group.leaf.id: ladder.widths[index] for ladder, index in zip(ladders, at, strict=True)}
    return found, error


def _refine(
    polynomial: Any, target: float, total: float, ladders: list[Ladder], at: np.ndarray, level: float
) -> np.ndarray:
    """Take or put back single rungs, and pairs of them, for as long as that brings the cost closer to its target.

    A move far from the `level` of order that was reached must bring it the closer, unless the budget is missed without.
    """
    at = at.copy()
    for _ in range(4 * len(ladders)):
        now = _widths(ladders, at)
        error = (polynomial(now) - target) / total
        moves = [
            (place, index)
            for place, ladder in enumerate(ladders)
            for index in (at[place] - 1, at[place] + 1)
            if 0 <= index < len(ladder.widths)
        ]
        if abs(error) <= _CLOSE or not moves:
            break
        deltas = np.array([polynomial.change(now, p, ladders[p].widths[i]) / total for p, i in moves])
        strain = np.array([abs(ladders[p].orders[min(i, at[p])] - level) for p, i in moves])
        strain *= _STRAIN if abs(error) <= TOLERANCE else 0.0
        price = np.maximum(np.abs(error + deltas), _CLOSE) + strain
        best = int(np.argmin(price))
        if price[best] < abs(error):
            chosen = [moves[best]]
        else:
            owner = np.array([place for place, _ in moves])
            pairs = np.abs(error + deltas[:, None] + deltas[None]) + strain[:, None] + strain[None]
            pairs[owner[:, None] == owner[None]] = np.inf
            chosen = [moves[index] for index in divmod(int(np.argmin(pairs)), len(moves))]
        trial = at.copy()
        for place, index in chosen:
            trial[place] = index
        if abs(polynomial(_widths(ladders, trial)) - target) / total >= abs(error):
            break
        if len(chosen) == 2 and pairs.min() >= abs(error):
            break
        at = trial
    return at


def _widths(ladders: list[Ladder], at: np.ndarray) -> np.ndarray:
    return np.array([ladder.widths[index] for ladder, index in zip(ladders, at, strict=True)], dtype=np.float64)
