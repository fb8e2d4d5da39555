"""Polynomials in the widths of the groups: what sizes and costs are.

>>> area = product_of([{(0,): 1.0, (): 2.0}, {(1,): 3.0}])
>>> area
{(0, 1): 3.0, (1,): 6.0}
>>> Polynomial(area, {0: 0, 1: 1})(np.array([4, 5]))
90.0
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

#: From the leaves of a monomial, sorted and with repetition, to its coefficient.
Terms = dict[tuple[int, ...], float]


def sum_of(parts: Iterable[Terms]) -> Terms:
    total: Terms = {}
    for part in parts:
        for leaves, factor in part.items():
            total[leaves] = total.get(leaves, 0.0) + factor
    return total


def _product(a: Terms, b: Terms) -> Terms:
    total: Terms = {}
    for left, x in a.items():
        for right, y in b.items():
            key = tuple(sorted(left + right))
            total[key] = total.get(key, 0.0) + x * y
    return total


def product_of(parts: Iterable[Terms]) -> Terms:
    """The product of polynomials; 1 where there are none."""
    total: Terms = {(): 1.0}
    for part in parts:
        total = _product(total, part)
    return total


def evaluate(terms: Terms, widths: Mapping[int, Any]) -> Any:
    """A polynomial at widths that may be arrays."""
    total: Any = 0.0
    for leaves, factor in terms.items():
        part: Any = factor
        for leaf in leaves:
            part = part * widths[leaf]
        total = total + part
    return total


class Polynomial:
    """A sum of monomials in the widths, evaluated all at once; `order` gives the leaves their places."""

    def __init__(self, terms: Terms, order: Mapping[int, int]) -> None:
        degree = max((len(leaves) for leaves in terms), default=0)
        one = len(order)  # the place of a constant 1, which fills monomials of lower degree
        rows = [[order[leaf] for leaf in leaves] + [one] * (degree - len(leaves)) for leaves in terms]
        self._places = np.array(rows, dtype=np.int64).reshape(len(terms), degree)
        self._factors = np.array(list(terms.values()), dtype=np.float64)
        self._size = len(order)
        self._of: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(order)
        holders: dict[int, list[int]] = {}
        for row, leaves in enumerate(terms):
            for leaf in set(leaves):
                holders.setdefault(order[leaf], []).append(row)
        for place, found in holders.items():
            self._of[place] = np.array(found)

    def __call__(self, widths: np.ndarray) -> float:
        """The value at a width a leaf, in the leaves' order."""
        return float(self._monomials(widths, slice(None)).sum())

    def change(self, widths: np.ndarray, place: int, width: int) -> float:
        """How much the value changes when the leaf in `place` takes another width: only its monomials are evaluated."""
        rows = self._of[place]
        if not rows.size:
            return 0.0
        before = self._monomials(widths, rows).sum()
        other = widths.copy()
        other[place] = width
        return float(self._monomials(other, rows).sum() - before)

    def _monomials(self, widths: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        extended = np.append(widths.astype(np.float64), 1.0)
        return self._factors[rows] * extended[self._places[rows]].prod(axis=1)
