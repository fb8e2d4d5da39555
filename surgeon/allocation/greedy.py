"""Meets a budget by stepping down the ladders of widths of all groups, in their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surgeon.cost.target import TOLERANCE, Target
from surgeon.groups.coupling import Group

_CLOSE = 0.002
_STRAIN = 0.01
_TRIES = 20
_ROUNDS = 40


@dataclass(frozen=True)
class Ladder:
    """The widths that a group may take, ascending, and the order in which stepping down to each is taken."""

    group: Group
    widths: tuple[int, ...]
    orders: np.ndarray


def meet(target: Target, ladders: list[Ladder], refine: bool = True) -> dict[int, int]:
    """The widths after the first rung at which the budget is met, so that one rung fewer would exceed it.

    Single rungs are then taken and put back, to use more of what may be left; where `refine` is False, only if more
    than the tolerance is unused. Where the budget can't be met, every rung is taken.
    """
    polynomial, limit = target.polynomial, target.limit
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
        if polynomial(_widths(ladders, standing(middle))) <= limit:
            high = middle
        else:
            low = middle + 1
    at = standing(low)
    left = polynomial(_widths(ladders, at))
    if left <= limit and (refine or left < (1 - TOLERANCE) * limit):
        at = _refine(target, ladders, at, rungs[low - 1][0] if low else 0.0)
    return {ladder.group.leaf.id: ladder.widths[index] for ladder, index in zip(ladders, at, strict=True)}


def _refine(target: Target, ladders: list[Ladder], at: np.ndarray, level: float) -> np.ndarray:
    """Take or put back single rungs, and pairs of them, for as long as less of the limit is left unused.

    A move far from the `level` of order that was reached must use the more, unless too much is unused without.
    """
    polynomial, whole = target.polynomial, target.whole
    close = min(_CLOSE, TOLERANCE * target.limit / whole)
    for _ in range(_ROUNDS * len(ladders)):
        now = _widths(ladders, at)
        unused = (target.limit - polynomial(now)) / whole
        moves = [
            (place, index)
            for place, ladder in enumerate(ladders)
            for index in (at[place] - 1, at[place] + 1)
            if 0 <= index < len(ladder.widths)
        ]
        if unused <= close or not moves:
            break
        deltas = np.array([polynomial.change(now, p, ladders[p].widths[i]) / whole for p, i in moves])
        strain = np.array([abs(ladders[p].orders[min(i, at[p])] - level) for p, i in moves])
        strain *= _STRAIN if unused * whole <= TOLERANCE * target.limit else 0.0
        price = np.where(deltas <= unused, np.maximum(unused - deltas, close) + strain, np.inf)
        best = int(np.argmin(price))
        if price[best] < unused:
            at = _moved(at, [moves[best]])
            continue
        owner = np.array([place for place, _ in moves])
        both = deltas[:, None] + deltas[None]
        pairs = np.where(both <= unused, unused - both + strain[:, None] + strain[None], np.inf)
        pairs[owner[:, None] == owner[None]] = np.inf
        nearest = np.argsort(pairs, axis=None)[:_TRIES]
        trials = [
            _moved(at, [moves[index] for index in divmod(int(flat), len(moves))])
            for flat in nearest if pairs.flat[flat] < unused
        ]
        # What two moves of factors of one cost change together is only known now.
        better = [trial for trial in trials if 0 <= target.limit - polynomial(_widths(ladders, trial)) < unused * whole]
        if not better:
            break
        at = better[0]
    return at


def _moved(at: np.ndarray, moves: list[tuple[int, int]]) -> np.ndarray:
    found = at.copy()
    for place, index in moves:
        found[place] = index
    return found


def _widths(ladders: list[Ladder], at: np.ndarray) -> np.ndarray:
    return np.array([ladder.widths[index] for ladder, index in zip(ladders, at, strict=True)], dtype=np.float64)
