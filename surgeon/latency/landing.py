"""Which latency to predict next, so that the one that was asked for is measured."""

from __future__ import annotations

import enum
from collections.abc import Sequence

#: What is measured over what was asked for: within these it is met; and what to aim at.
NEAR, AIM = (0.98, 1.0), 0.99
#: Beyond these an interval that reaches `NEAR` is so wide that it tells nothing.
DOUBTFUL = (0.96, 1.02)
# How close to widths that were measured already others are looked for, as a share of the way to the next ones.
_INSIDE = 0.1


class Landed(enum.Enum):
    """Whether what was asked for was met: measured so, within the interval of what was measured, or not."""

    MET = "met"
    MAY_BE = "may be"
    NOT = "not"


def where_landed(off: float, low: float, high: float) -> Landed:
    """Where a measured latency lies, over what was asked for, with the ends of its interval.

    >>> where_landed(0.99, 0.97, 1.02), where_landed(1.01, 0.99, 1.03), where_landed(1.01, 1.005, 1.03)
    (<Landed.MET: 'met'>, <Landed.MAY_BE: 'may be'>, <Landed.NOT: 'not'>)
    >>> where_landed(1.15, 0.9, 1.3)
    <Landed.NOT: 'not'>
    """
    if NEAR[0] <= off <= NEAR[1]:
        return Landed.MET
    reaches = low <= NEAR[1] and high >= NEAR[0]
    return Landed.MAY_BE if reaches and DOUBTFUL[0] <= off <= DOUBTFUL[1] else Landed.NOT


def next_target(landings: Sequence[tuple[float, float]], base: tuple[float, float]) -> float:
    """The milliseconds to ask the prediction for.

    `landings` are pairs of predicted milliseconds and what was measured then, over what was asked for; `base` is the
    pair of the whole model. Between a pair that is too slow and one that is not, what lies on the line through them;
    below all of them, what scaling the lowest comes to.

    >>> round(next_target([(2.0, 1.1)], (4.0, 2.0)), 3), round(next_target([(2.0, 0.8)], (4.0, 1.8)), 3)
    (1.8, 2.38)
    """
    quick = [pair for pair in landings if pair[1] <= AIM]
    if not quick:
        predicted, off = min(landings)
        return predicted * AIM / off
    below = max(quick)
    above = min((pair for pair in (*landings, base) if pair[1] > AIM and pair[0] > below[0]), default=None)
    if above is None:
        return min(below[0] * AIM / below[1], base[0])
    share = (AIM - below[1]) / (above[1] - below[1])
    return below[0] + min(max(share, _INSIDE), 1 - _INSIDE) * (above[0] - below[0])
