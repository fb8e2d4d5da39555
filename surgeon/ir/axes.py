"""Axis expressions: what the positions of a tensor's axis stand for, and which of them are removed together.

An axis is a `Leaf` of n units, a row-major product (`Prod`), or a concatenation (`Sum`) of axes. Expressions are
immutable; what is found out about leaves is recorded in a `surgeon.ir.space.Space`.

>>> prod([Leaf(0, 12), prod([Leaf(1, 8), Leaf(2, 8)])]).size
768
>>> concat([Leaf(0, 16), concat([Leaf(1, 48), Leaf(0, 16)])]).size
80
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod as product
from typing import assert_never


@dataclass(frozen=True, slots=True)
class Leaf:
    """An axis of `size` units that are not known to have any inner structure."""

    id: int
    size: int


@dataclass(frozen=True)
class Prod:
    """The row-major product of `factors`: a flattened axis, or one that is viewed as several."""

    factors: tuple[Axis, ...]

    @cached_property
    def size(self) -> int:
        return product(factor.size for factor in self.factors)


@dataclass(frozen=True)
class Sum:
    """The concatenation of `terms`."""

    terms: tuple[Axis, ...]

    @cached_property
    def size(self) -> int:
        return sum(term.size for term in self.terms)


Axis = Leaf | Prod | Sum

#: The axis of one position. It has no unit that could be removed.
ONE = Prod(())


def prod(factors: Iterable[Axis]) -> Axis:
    """The product of `factors`, nested products flattened and axes of size 1 dropped."""
    flat: list[Axis] = []
    for factor in factors:
        if isinstance(factor, Prod):
            flat += factor.factors
        elif factor.size != 1 or isinstance(factor, Leaf):
            flat.append(factor)
    return flat[0] if len(flat) == 1 else Prod(tuple(flat))


def concat(terms: Iterable[Axis]) -> Axis:
    """The concatenation of `terms`, nested sums flattened and empty terms dropped."""
    flat: list[Axis] = []
    for term in terms:
        if isinstance(term, Sum):
            flat += term.terms
        elif term.size:
            flat.append(term)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def leaves(axis: Axis) -> Iterator[Leaf]:
    """Every occurrence of a leaf in `axis`, from left to right."""
    match axis:
        case Leaf():
            yield axis
        case Prod():
            for factor in axis.factors:
                yield from leaves(factor)
        case Sum():
            for term in axis.terms:
                yield from leaves(term)
        case _:
            assert_never(axis)
