"""What is known about leaves: which are the same, which are composed of smaller axes, and which are pinned.

>>> space = Space()
>>> rows = space.fresh(768)
>>> heads, head_dim = space.divide(rows, [12, 64])
>>> space.text(rows)
'(a1:12 a2:64)'
>>> space.kept(rows, {heads.id: [0, 3], head_dim.id: range(64)}).size
128
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod as product
from typing import assert_never

import numpy as np

from surgeon.ir.axes import ONE, Axis, Leaf, Prod, Sum, concat, leaves, prod

# A cut inside of a product's inner factor makes each outer position a separate segment; beyond this many segments, the
# axis is pinned instead.
MAX_SEGMENTS = 64
# An axis that is the same as itself a step further on, as in overlapping windows, makes every step a segment: beyond so
# many of them, it is pinned instead.
MAX_STEPS = 64


@dataclass
class Space:
    """What is known about leaves: bindings, and pins with their reasons."""

    bindings: dict[int, Axis] = field(default_factory=dict)
    pins: dict[int, str] = field(default_factory=dict)
    count: int = 0
    steps: int = field(default=0, repr=False)

    def fresh(self, size: int, pin: str | None = None) -> Axis:
        """A new axis of `size` units; pinned for the reason `pin`, if one is given."""
        if size == 1:
            return ONE
        leaf = Leaf(self.count, size)
        self.count += 1
        if pin is not None:
            self.pins[leaf.id] = pin
        return leaf

    def resolve(self, axis: Axis) -> Axis:
        """`axis` with every bound leaf replaced by what it is bound to."""
        match axis:
            case Leaf():
                bound = self.bindings.get(axis.id)
                if bound is None:
                    return axis
                resolved = self.resolve(bound)
                self.bindings[axis.id] = resolved
                return resolved
            case Prod():
                factors = [self.resolve(factor) for factor in axis.factors]
                same = all(new is old for new, old in zip(factors, axis.factors, strict=True))
                return axis if same else prod(factors)
            case Sum():
                terms = [self.resolve(term) for term in axis.terms]
                same = all(new is old for new, old in zip(terms, axis.terms, strict=True))
                return axis if same else concat(terms)
            case _:
                assert_never(axis)

    def leaves(self, axis: Axis) -> Iterator[Leaf]:
        """The leaves that `axis` consists of, by what is known so far."""
        return leaves(self.resolve(axis))

    def pin(self, axis: Axis, reason: str) -> None:
        """Forbid the removal of any unit of `axis`. The first reason given for a leaf is kept."""
        for leaf in self.leaves(axis):
            self.pins.setdefault(leaf.id, reason)

    def _bind(self, leaf: Leaf, axis: Axis) -> None:
        self.bindings[leaf.id] = axis
        if leaf.id in self.pins:
            self.pin(axis, self.pins[leaf.id])

    def unify(self, a: Axis, b: Axis, why: str = "axes that do not align") -> bool:
        """Make `a` and `b` the same axis, refining both where needed.

        Where they can't be made the same, both are pinned for the reason `why` and False is returned.
        """
        if a.size != b.size:
            raise ValueError(f"axes of {a.size} and {b.size} positions can't be the same axis")
        if self._unify(a, b):
            return True
        self.pin(a, why)
        self.pin(b, why)
        return False

    def _unify(self, a: Axis, b: Axis) -> bool:
        a, b = self.resolve(a), self.resolve(b)
        if a == b or not (any(leaves(a)) or any(leaves(b))):  # without units, all positions stay, however they are put
            return True
        if isinstance(a, Leaf) or isinstance(b, Leaf):
            leaf, other = (a, b) if isinstance(a, Leaf) else (b, a)
            assert isinstance(leaf, Leaf)
            if any(inner.id == leaf.id for inner in leaves(other)):
                return False
            self._bind(leaf, other)
            return True
        if isinstance(a, Sum) and isinstance(b, Sum):
            points = sorted({*_boundaries(a), *_boundaries(b)})
            if self.steps >= MAX_STEPS:
                return False
            self.steps += 1
            try:
                return self._unify_all(self._cut(a, points), self._cut(b, points))
            finally:
                self.steps -= 1
        inner = _common_radix(a, b)
        if inner is None:
            return False
        return self._unify_all(self._divide(a, inner), self._divide(b, inner))

    def _unify_all(self, some: Iterable[Axis] | None, others: Iterable[Axis] | None) -> bool:
        """Unify all pairs, if there are any, even after one fails: the others are the same axes anyway."""
        if some is None or others is None:
            return False
        results = [self._unify(a, b) for a, b in zip(some, others, strict=True)]
        return all(results)

    def divide(self, axis: Axis, sizes: Sequence[int], why: str = "a reshape across units") -> list[Axis]:
        """`axis` as a product of axes of the given `sizes`, outermost first.

        Where that is not possible, it is pinned for the reason `why`, and pinned axes are returned.
        """
        if product(sizes) != axis.size:
            raise ValueError(f"an axis of {axis.size} positions can't be viewed as {tuple(sizes)}")
        parts: list[Axis] = []
        rest: Axis | None = axis
        for size in reversed(sizes):
            split = self._divide(rest, size) if rest is not None else None
            if split is None:
                self.pin(axis, why)
                return [self.fresh(size, why) for size in sizes]
            rest, part = split
            parts.append(part)
        return parts[::-1]

    def _divide(self, axis: Axis, inner: int) -> tuple[Axis, Axis] | None:
        axis = self.resolve(axis)
        if inner == 1:
            return axis, ONE
        if inner == axis.size:
            return ONE, axis
        if axis.size % inner:
            return None
        match axis:
            case Leaf():
                outer, part = self.fresh(axis.size // inner), self.fresh(inner)
                self._bind(axis, prod([outer, part]))
                return outer, part
            case Prod():
                *rest, last = axis.factors
                if inner % last.size == 0:
                    split = self._divide(prod(rest), inner // last.size)
                    return split and (split[0], prod([split[1], last]))
                if last.size % inner == 0:
                    split = self._divide(last, inner)
                    return split and (prod([*rest, split[0]]), split[1])
                return None
            case Sum():
                return self._divide_sum(axis, inner)
            case _:
                assert_never(axis)

    def _divide_sum(self, axis: Sum, inner: int) -> tuple[Axis, Axis] | None:
        """Segments whose sizes are multiples of `inner` are divided one by one, and share their inner axis."""
        outers: list[Axis] = []
        inners: list[Axis] = []
        run: list[Axis] = []
        for term in axis.terms:
            run.append(term)
            total = sum(part.size for part in run)
            if total % inner:
                continue
            if len(run) == 1:
                split = self._divide(term, inner)
                if split is None:
                    return None
                outers.append(split[0])
                inners.append(split[1])
            else:
                pieces = self._cut(concat(run), range(inner, total, inner))
                if pieces is None:
                    return None
                outers += [ONE] * len(pieces)
                inners += pieces
            run = []
        if not self._unify_all([inners[0]] * (len(inners) - 1), inners[1:]):
            return None
        return concat(outers), inners[0]

    def cut(self, axis: Axis, points: Iterable[int], why: str = "a cut across units") -> list[Axis]:
        """The segments of `axis` between the given interior `points`.

        Where that is not possible, it is pinned for the reason `why`, and pinned axes are returned.
        """
        inside = sorted({point for point in points if 0 < point < axis.size})
        parts = self._cut(axis, inside)
        if parts is None:
            self.pin(axis, why)
            bounds = [0, *inside, axis.size]
            return [self.fresh(b - a, why) for a, b in pairwise(bounds)]
        return parts

    def _cut(self, axis: Axis, points: Iterable[int]) -> list[Axis] | None:
        parts: list[Axis] = []
        rest, start = axis, 0
        for point in points:
            split = self._split_at(rest, point - start)
            if split is None:
                return None
            parts.append(split[0])
            rest, start = split[1], point
        return [*parts, rest]

    def _split_at(self, axis: Axis, point: int) -> tuple[Axis, Axis] | None:
        axis = self.resolve(axis)
        match axis:
            case Leaf():
                left, right = self.fresh(point), self.fresh(axis.size - point)
                self._bind(axis, concat([left, right]))
                return left, right
            case Sum():
                start = 0
                for index, term in enumerate(axis.terms):
                    if start < point < start + term.size:
                        split = self._split_at(term, point - start)
                        return split and (
                            concat([*axis.terms[:index], split[0]]),
                            concat([split[1], *axis.terms[index + 1 :]]),
                        )
                    start += term.size
                    if start == point:
                        return concat(axis.terms[: index + 1]), concat(axis.terms[index + 1 :])
                raise AssertionError("the point lies outside of the axis")
            case Prod():
                first, inner = axis.factors[0], prod(axis.factors[1:])
                if point % inner.size == 0:
                    split = self._split_at(first, point // inner.size)
                    return split and (prod([split[0], inner]), prod([split[1], inner]))
                if first.size > MAX_SEGMENTS or not self._unify(first, concat([ONE] * first.size)):
                    return None
                return self._split_at(concat([inner] * first.size), point)
            case _:
                assert_never(axis)

    def kept(self, axis: Axis, keep: Mapping[int, Iterable[int]]) -> np.ndarray:
        """The positions of `axis` that are left, ascending; `keep` maps a leaf's id to its kept units."""
        axis = self.resolve(axis)
        match axis:
            case Leaf():
                if axis.id in keep:
                    return np.asarray(list(keep[axis.id]), dtype=np.int64)
                return np.arange(axis.size)
            case Prod():
                positions = np.zeros(1, dtype=np.int64)
                for factor in axis.factors:
                    positions = (positions[:, None] * factor.size + self.kept(factor, keep)[None]).ravel()
                return positions
            case Sum():
                offsets = np.cumsum([0, *(term.size for term in axis.terms)])
                parts = [self.kept(t, keep) + start for t, start in zip(axis.terms, offsets, strict=False)]
                return np.concatenate(parts)
            case _:
                assert_never(axis)

    def width(self, axis: Axis, widths: Mapping[int, int]) -> int:
        """How many positions of `axis` are left when `widths` gives the number of units left in each leaf."""
        axis = self.resolve(axis)
        match axis:
            case Leaf():
                return widths.get(axis.id, axis.size)
            case Prod():
                return product(self.width(factor, widths) for factor in axis.factors)
            case Sum():
                return sum(self.width(term, widths) for term in axis.terms)
            case _:
                assert_never(axis)

    def units(self, axis: Axis, leaf: Leaf) -> list[np.ndarray]:
        """For each occurrence of `leaf` in `axis`: the unit that each position belongs to, or -1."""
        axis = self.resolve(axis)
        match axis:
            case Leaf():
                return [np.arange(axis.size)] if axis.id == leaf.id else []
            case Prod():
                found = []
                for index, factor in enumerate(axis.factors):
                    before = product(f.size for f in axis.factors[:index])
                    after = product(f.size for f in axis.factors[index + 1 :])
                    found += [np.tile(np.repeat(u, after), before) for u in self.units(factor, leaf)]
                return found
            case Sum():
                found, start = [], 0
                for term in axis.terms:
                    for units in self.units(term, leaf):
                        whole = np.full(axis.size, -1, dtype=np.int64)
                        whole[start : start + term.size] = units
                        found.append(whole)
                    start += term.size
                return found
            case _:
                assert_never(axis)

    def text(self, axis: Axis, names: Mapping[int, str] | None = None) -> str:
        """`axis` in einops' notation: `(heads:12 head_dim:64)`, `a0:16 + a1:48`, `1`."""
        axis = self.resolve(axis)
        match axis:
            case Leaf():
                return f"{(names or {}).get(axis.id, f'a{axis.id}')}:{axis.size}"
            case Prod():
                if not axis.factors:
                    return "1"
                return "(" + " ".join(f"{{{t}}}" if "+" in t and t[0] != "(" else t
                                      for t in (self.text(f, names) for f in axis.factors)) + ")"
            case Sum():
                return " + ".join(self.text(term, names) for term in axis.terms)
            case _:
                assert_never(axis)


def _boundaries(axis: Sum) -> list[int]:
    return list(np.cumsum([term.size for term in axis.terms])[:-1].tolist())


def _common_radix(a: Axis, b: Axis) -> int | None:
    """The size of an innermost factor by which both axes can be divided; None where the radices don't divide."""
    last = [axis.factors[-1].size if isinstance(axis, Prod) and axis.factors else None for axis in (a, b)]
    match last:
        case [int(x), int(y)] if x % y == 0 or y % x == 0:
            return min(x, y)
        case [int(x), None] | [None, int(x)]:
            return x
        case _:
            return None
