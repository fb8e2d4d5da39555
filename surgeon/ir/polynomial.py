"""Polynomials in the widths of the groups, for sizes and costs.

>>> area = product_of([{(0,): 1.0, (): 2.0}, {(1,): 3.0}])
>>> area
{(0, 1): 3.0, (1,): 6.0}
>>> Polynomial(area, {0: 0, 1: 1})(np.array([4, 5]))
90.0
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

#: From the leaves of a monomial, sorted and with repetition, to its coefficient.
Terms = dict[tuple[int, ...], float]


def sum_of(parts: Iterable[Terms]) -> Terms:
    """The sum of polynomials."""
    total: Terms = {}
    for part in parts:
        for leaves, factor in part.items():
            total[leaves] = total.get(leaves, 0.0) + factor
    return total


def product_of(parts: Iterable[Terms]) -> Terms:
    """The product of polynomials; 1 where there are none."""
    total: Terms = {(): 1.0}
    for part in parts:
        pairs = itertools.product(total.items(), part.items())
        total = sum_of({tuple(sorted(left + right)): x * y} for (left, x), (right, y) in pairs)
    return total


def evaluate(terms: Terms, widths: Mapping[int, Any]) -> Any:
    """A polynomial at widths that may be arrays."""
    total: Any = 0.0
    for leaves, factor in terms.items():
        total = total + math.prod((widths[leaf] for leaf in leaves), start=factor)
    return total


class Polynomial:
    """A sum of monomials in the widths, evaluated at once; `order` gives the place of each leaf's width."""

    def __init__(self, terms: Terms, order: Mapping[int, int]) -> None:
        degree = max((len(leaves) for leaves in terms), default=0)
        one = len(order)  # the place of a constant 1, which pads monomials of lower degree
        rows = [[order[leaf] for leaf in leaves] + [one] * (degree - len(leaves)) for leaves in terms]
        self._places = np.array(rows, dtype=np.int64).reshape(len(terms), degree)
        self._factors = np.array(list(terms.values()), dtype=np.float64)
        self._rows_of = [np.flatnonzero((self._places == place).any(axis=1)) for place in range(len(order))]

    def __call__(self, widths: np.ndarray) -> float:
        """The value at these widths, one for each leaf, in order."""
        return float(self._monomials(widths, slice(None)).sum())

    def change(self, widths: np.ndarray, place: int, width: int) -> float:
        """How much the value changes when the leaf at `place` takes another width; only its monomials are evaluated."""
        rows = self._rows_of[place]
        if not rows.size:
            return 0.0
        before = self._monomials(widths, rows).sum()
        other = widths.copy()
        other[place] = width
        return float(self._monomials(other, rows).sum() - before)

    def _monomials(self, widths: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        extended = np.append(widths.astype(np.float64), 1.0)
        return self._factors[rows] * extended[self._places[rows]].prod(axis=1)
