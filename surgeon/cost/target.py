"""How much of a budget a pruning ratio leaves, and how closely widths match that."""

from __future__ import annotations

import math
from collections.abc import Mapping

from surgeon.cost.cost import Cost

#: The share of the limit that widths may leave unused; more only if every wider choice exceeds the limit.
TOLERANCE = 0.02
_ROUNDING = 1e-9


class Target:
    """What may be left of a budget, `limit` of `whole`, once the share `ratio` of it is removed."""

    def __init__(self, cost: Cost, budget: str, ratio: float) -> None:
        self.cost, self.budget, self.ratio = cost, budget, ratio
        self.polynomial = cost.polynomial(budget)
        self.whole = self.polynomial(cost.vector({}))
        # Allows for rounding, but not so much that nothing is removed when something should be.
        self.limit = min((1 - ratio) * (1 + _ROUNDING), 1 - ratio / 2) * self.whole

    def unused(self, widths: Mapping[int, int]) -> float:
        """The share of the limit that these widths leave unused; negative if they exceed it."""
        return 1 - self.polynomial(self.cost.vector(widths)) / self.limit

    def removed(self, widths: Mapping[int, int]) -> float:
        """The share of the budget that these widths remove; 0 if there is nothing to remove."""
        return 1 - self.polynomial(self.cost.vector(widths)) / self.whole if self.whole else 0.0


def percent(share: float, gap: str = "") -> str:
    """A share in percent, with as many decimals as distinguish it from 0 % and 100 %, and `gap` before the sign.

    >>> [percent(share) for share in (0.5, 0.0123, 0.9645, 0.9999, 0.999962, 0.0)]
    ['50.0%', '1.2%', '96.5%', '99.99%', '99.9962%', '0.0%']
    """
    near = 100 * min(abs(share), abs(1 - share))
    if not 1e-9 < near < 1:
        return f"{100 * share:.1f}{gap}%"
    whole, _, digits = f"{100 * share:.{1 - math.floor(math.log10(near))}f}".partition(".")
    return f"{whole}.{digits[0]}{digits[1:].rstrip('0')}{gap}%"


def rounded_down(share: float) -> float:
    """A share rounded down to at least four decimals, and to within 1 % of its distance from 1.

    >>> rounded_down(0.123456), rounded_down(0.99987654)
    (0.1234, 0.999876)
    """
    digits = max(4, 2 - math.floor(math.log10(max(1 - share, 1e-9))))
    return math.floor(share * 10**digits) / 10**digits
