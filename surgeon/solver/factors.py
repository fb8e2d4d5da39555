"""A cost as a sum of factors, each a function of the widths of a few leaves, for the solver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from surgeon.ir.polynomial import Terms, evaluate


@dataclass(frozen=True)
class Factor:
    """One part of a cost, such as the milliseconds of one operator, as a function of the leaves it depends on.

    `leaves` are ids, ascending and without repetition; `()` makes a constant. `function` takes a broadcastable float
    array of widths for each of them, in their order.

    >>> conv = Factor("conv", (3, 7), lambda a, b: 0.1 + 0.001 * a * b)
    >>> round(conv.at({3: 10, 7: 20}), 6)
    0.3
    >>> conv.table([(1, 2), (10, 20, 30)]).shape
    (2, 3)
    """

    label: str
    leaves: tuple[int, ...]
    function: Callable[..., np.ndarray] = field(repr=False)

    def at(self, widths: Mapping[int, int]) -> float:
        """The value at one width a leaf; `widths` may name other leaves too."""
        return float(self.function(*(np.float64(widths[leaf]) for leaf in self.leaves)))

    def table(self, candidates: Sequence[Sequence[int]]) -> np.ndarray:
        """The values at all combinations of the leaves' candidates, with one axis for each leaf."""
        shape = tuple(len(each) for each in candidates)
        axes = np.ix_(*(np.asarray(each, dtype=np.float64) for each in candidates))
        return np.broadcast_to(np.asarray(self.function(*axes), dtype=np.float64), shape)


class LatencyModel(Protocol):
    """What the solver needs to know about a device: milliseconds as factors, and the widths where these are valid."""

    @property
    def factors(self) -> Sequence[Factor]:
        """Parts of the latency in milliseconds, valid at `steps`."""

    def steps(self, leaf: int) -> tuple[int, ...]:
        """The fast widths of a leaf, ascending, the full one included."""

    def finest(self, leaf: int) -> tuple[int, ...]:
        """All fast widths of a leaf, including those that `steps` skips because they are close to one another."""

    def ms(self, widths: Mapping[int, int]) -> float:
        """The latency at any widths, fast or not; leaves without a width keep their size."""


def total(factors: Iterable[Factor], widths: Mapping[int, int]) -> float:
    return sum(factor.at(widths) for factor in factors)


def scaled(factors: Iterable[Factor], scale: float) -> tuple[Factor, ...]:
    """The factors times a number.

    >>> scaled([Factor("fc", (0,), lambda a: a + 1)], 2.0)[0].at({0: 3})
    8.0
    """

    def times(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        return lambda *widths: scale * np.asarray(function(*widths))

    return tuple(factors) if scale == 1 else tuple(replace(f, function=times(f.function)) for f in factors)


def polynomial_factors(terms: Terms, label: str = "") -> list[Factor]:
    """The factors of a polynomial in the widths: one for each set of leaves that occur together in a monomial.

    >>> [(f.leaves, f.at({0: 2, 1: 5})) for f in polynomial_factors({(0,): 3.0, (0, 0, 1): 1.0, (0, 1): 2.0})]
    [((0,), 6.0), ((0, 1), 40.0)]
    """
    sets: dict[tuple[int, ...], Terms] = {}
    for leaves, factor in terms.items():
        sets.setdefault(tuple(sorted(set(leaves))), {})[leaves] = factor
    return [Factor(label, leaves, _monomials(leaves, found)) for leaves, found in sets.items()]


def _monomials(leaves: tuple[int, ...], terms: Terms) -> Callable[..., np.ndarray]:
    return lambda *widths: np.asarray(evaluate(terms, dict(zip(leaves, widths, strict=True))))
