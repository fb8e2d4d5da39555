"""Which predicted latency to aim at next, so that the requested one is measured."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from surgeon.device.statistics import NOISY

#: Measured latency over requested: the target is met within these, and `AIM` is aimed at.
NEAR, AIM = (0.98, 1.0), 0.99
#: Beyond these, an interval that overlaps `NEAR` is too wide to count.
DOUBTFUL = (0.96, 1.02)
# How close to measured widths the next ones may be, as a share of the distance between two that were measured.
_INSIDE = 0.1


class Landed(enum.Enum):
    """Whether the requested latency was met: as measured, within the interval of the measurement, or not; or whether
    that can't be told where the machine is too noisy."""

    MET = "met"
    MAY_BE = "may be"
    NOT = "not"
    NOISY = "too noisy"


def where_landed(off: float, low: float, high: float, noise: float = 0.0) -> Landed:
    """Whether the target is met by a measured latency and its interval, all relative to the requested latency.

    `noise` is how far the base was measured to be from itself: beyond `NOISY`, the interval is that much wider, and
    nothing is told of what it holds.

    >>> where_landed(0.99, 0.97, 1.02), where_landed(1.01, 0.99, 1.03), where_landed(1.01, 1.005, 1.03)
    (<Landed.MET: 'met'>, <Landed.MAY_BE: 'may be'>, <Landed.NOT: 'not'>)
    >>> where_landed(1.15, 0.9, 1.3)
    <Landed.NOT: 'not'>
    >>> where_landed(0.99, 0.97, 1.02, noise=0.08), where_landed(1.3, 1.25, 1.35, noise=0.08)
    (<Landed.NOISY: 'too noisy'>, <Landed.NOT: 'not'>)
    """
    if noise > NOISY:
        reaches = min(low, off) <= NEAR[1] * (1 + noise) and max(high, off) * (1 + noise) >= NEAR[0]
        return Landed.NOISY if reaches else Landed.NOT
    if NEAR[0] <= off <= NEAR[1]:
        return Landed.MET
    reaches = low <= NEAR[1] and high >= NEAR[0]
    return Landed.MAY_BE if reaches and DOUBTFUL[0] <= off <= DOUBTFUL[1] else Landed.NOT


def next_target(landings: Sequence[tuple[float, float]], base: tuple[float, float]) -> float:
    """The predicted milliseconds to aim at.

    `landings` are pairs of predicted milliseconds and the measured latency relative to the requested one; `base` is the
    pair of the whole model. Interpolates between a pair that is too slow and one that is not; if all are too slow, the
    lowest is scaled.

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
