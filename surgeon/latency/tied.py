"""A device's latency as a function of the steps of groups that are tied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from surgeon.groups.ties import Ties
from surgeon.solver.factors import Factor, LatencyModel

#: With fewer steps than this at which all leaves of a class have fast widths, other steps count as fast too.
_FEW = 4


class TiedLatency:
    """`LatencyModel` for a variable a class; leaves that are held are numbers."""

    def __init__(self, latency: LatencyModel, ties: Ties) -> None:
        self._whole, self._ties = latency, ties
        self.factors: Sequence[Factor] = tuple(self._in_steps(factor) for factor in latency.factors)

    def steps(self, leaf: int) -> tuple[int, ...]:
        return self._common(leaf, self._whole.steps)

    def finest(self, leaf: int) -> tuple[int, ...]:
        return self._common(leaf, self._whole.finest)

    def ms(self, widths: Mapping[int, int]) -> float:
        return self._whole.ms(self._ties.expand(widths))

    def _common(self, leaf: int, fast: Callable[[int], tuple[int, ...]]) -> tuple[int, ...]:
        members = self._ties.of(leaf)
        if len(members) == 1:
            return fast(leaf)
        most = self._ties.steps(members)
        known = {member: set(fast(member)) for member in members}
        found = [
            count for count in range(1, most + 1)
            if all(count * self._ties.unit(member) in known[member] for member in members)
        ]
        return tuple(found) if len(found) >= min(_FEW, most) else tuple(range(1, most + 1))

    def _in_steps(self, factor: Factor) -> Factor:
        firsts = {leaf: self._ties.of(leaf)[0] for leaf in factor.leaves if leaf not in self._ties.held}
        leaves = tuple(sorted(set(firsts.values())))

        def at(*steps: Any) -> np.ndarray:
            given = dict(zip(leaves, steps, strict=True))
            widths = [
                given[firsts[leaf]] * self._ties.unit(leaf) if leaf in firsts else np.float64(self._ties.sizes[leaf])
                for leaf in factor.leaves
            ]
            return np.asarray(factor.function(*widths))

        return Factor(factor.label, leaves, at)
