"""Groups that keep the same share of their units, because the Python code of a model derives one width from another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ties:
    """Leaves that keep the same share of their units, and leaves that keep all of them.

    Where k of `steps` are kept, each leaf of a class keeps k times its `unit`, so that sums and products that were
    equal stay equal. `sizes` are those of all leaves.

    >>> ties = Ties(((0, 1),), frozenset({2}), {0: 96, 1: 32, 2: 3, 3: 10})
    >>> ties.steps((0, 1)), ties.unit(0), ties.unit(1)
    (32, 3, 1)
    >>> ties.expand({0: 16, 3: 5})
    {0: 48, 1: 16, 2: 3, 3: 5}
    """

    classes: tuple[tuple[int, ...], ...] = ()
    held: frozenset[int] = frozenset()
    sizes: Mapping[int, int] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.classes or self.held)

    def steps(self, leaves: Iterable[int]) -> int:
        """How many widths the leaves of a class have in common."""
        return math.gcd(*(self.sizes[leaf] for leaf in leaves))

    def of(self, leaf: int) -> tuple[int, ...]:
        """The class that a leaf is in; it alone where it is in none."""
        return next((each for each in self.classes if leaf in each), (leaf,))

    def unit(self, leaf: int) -> int:
        """How many units one step of its class is."""
        return self.sizes[leaf] // self.steps(self.of(leaf)) if len(self.of(leaf)) > 1 else 1

    def expand(self, steps: Mapping[int, int]) -> dict[int, int]:
        """The width of every leaf, from the steps of the first leaf of each class, and the widths of all others."""
        found = {leaf: self.sizes[leaf] for leaf in self.held}
        for first, count in steps.items():
            found |= {leaf: count * self.unit(leaf) for leaf in self.of(first)}
        return dict(sorted(found.items()))
