"""The algebra of axes against arrays: labels for what a position stands for, tensors for what operators do to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product as pairs
from math import prod as size_of
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgeon.ir.axes import ONE, Axis, Leaf, Prod, Sum, concat, leaves, prod
from surgeon.ir.space import MAX_SEGMENTS, Space

SIZES = [1, 2, 3, 4, 6, 8, 12, 24]

#: Computes a tensor from the earlier ones, given the number of units left in each leaf.
Step = Callable[[list[np.ndarray], dict[int, int]], np.ndarray]

seeds = st.integers(0, 2**32 - 1)


def random_axis(rng: Random, space: Space, size: int, depth: int = 3) -> Axis:
    """An expression of this size; leaves are fresh, or ones that exist already."""
    kind = rng.choice(["leaf", "old", "prod", "sum"]) if depth and size > 1 else "leaf"
    if kind == "old":
        old = [Leaf(i, s) for i, s in sizes(space).items() if s == size]
        if old:
            return rng.choice(old)
    if kind == "prod":
        inner = rng.choice([d for d in range(1, size + 1) if size % d == 0])
        return prod([random_axis(rng, space, size // inner, depth - 1), random_axis(rng, space, inner, depth - 1)])
    if kind == "sum":
        left = rng.randint(1, size - 1)
        return concat([random_axis(rng, space, left, depth - 1), random_axis(rng, space, size - left, depth - 1)])
    axis = space.fresh(size)
    if isinstance(axis, Leaf):
        sizes(space)[axis.id] = size
    return axis


def sizes(space: Space) -> dict[int, int]:
    """The sizes of the leaves that `random_axis` made in this space."""
    return space.__dict__.setdefault("made", {})


def random_keep(rng: Random, space: Space, axes: Sequence[Axis]) -> dict[int, list[int]]:
    """For each leaf that isn't pinned, a random part of its units, at least one."""
    free = {leaf for axis in axes for leaf in space.leaves(axis) if leaf.id not in space.pins}
    return {leaf.id: sorted(rng.sample(range(leaf.size), rng.randint(1, leaf.size)))
            for leaf in sorted(free, key=lambda leaf: leaf.id)}


def labels(axis: Axis) -> list[frozenset[tuple[int, int]]]:
    """The units, each a leaf's id and a number, that each position of an unbound expression belongs to."""
    match axis:
        case Leaf():
            return [frozenset({(axis.id, unit)}) for unit in range(axis.size)]
        case Prod():
            found: list[frozenset[tuple[int, int]]] = [frozenset()]
            for factor in axis.factors:
                found = [outer | inner for outer, inner in pairs(found, labels(factor))]
            return found
        case Sum():
            return [label for term in axis.terms for label in labels(term)]


@given(seeds, st.sampled_from(SIZES))
def test_a_position_is_kept_when_all_units_it_belongs_to_are(seed: int, size: int) -> None:
    rng, space = Random(seed), Space()
    axis = random_axis(rng, space, size)
    keep = random_keep(rng, space, [axis])
    expected = [i for i, label in enumerate(labels(axis)) if all(unit in keep[leaf] for leaf, unit in label)]
    assert space.kept(axis, keep).tolist() == expected
    assert space.width(axis, {leaf: len(kept) for leaf, kept in keep.items()}) == len(expected)


@given(seeds, st.sampled_from(SIZES))
def test_units_name_what_each_position_belongs_to(seed: int, size: int) -> None:
    rng, space = Random(seed), Space()
    axis = random_axis(rng, space, size)
    for leaf in set(leaves(axis)):
        found: list[set[int]] = [set() for _ in range(size)]
        for units in space.units(axis, leaf):
            for position, unit in enumerate(units.tolist()):
                found[position] |= {unit} - {-1}
        assert found == [{unit for owner, unit in label if owner == leaf.id} for label in labels(axis)]


@example(1104, 24)  # units that are all of one position
@given(seeds, st.sampled_from(SIZES))
def test_unified_axes_keep_the_same_positions(seed: int, size: int) -> None:
    rng, space = Random(seed), Space()
    a, b = random_axis(rng, space, size), random_axis(rng, space, size)
    agreed = space.unify(a, b, "test")
    keep = random_keep(rng, space, [a, b])
    assert space.kept(a, keep).tolist() == space.kept(b, keep).tolist()
    if not agreed:
        assert all(leaf.id in space.pins for axis in (a, b) for leaf in space.leaves(axis))
    assert space.unify(b, a) is agreed or not agreed


class Machine:
    """Tensors at full size, their axes, and how to compute each from the earlier ones at any size.

    The elements of a tensor encode where they come from, so that an element in the wrong place shows.
    """

    def __init__(self, rng: Random) -> None:
        self.rng, self.space = rng, Space()
        self.axes: list[tuple[Axis, ...]] = []
        self.arrays: list[np.ndarray] = []
        self.steps: list[Step | None] = []

    def add(
        self, array: np.ndarray, axes: Sequence[Axis],
        step: Step | None = None,
    ) -> None:
        assert array.shape == tuple(axis.size for axis in axes)
        self.arrays.append(array)
        self.axes.append(tuple(axes))
        self.steps.append(step)

    def source(self) -> None:
        shape = [self.rng.choice(SIZES[1:]) for _ in range(self.rng.randint(1, 2))]
        start = 10_000 * len(self.arrays)
        self.add(np.arange(start, start + size_of(shape)).reshape(shape), [self.space.fresh(n) for n in shape])

    def divide(self, at: int, axis: int) -> None:
        """A view of one axis as two."""
        x, axes = self.arrays[at], self.axes[at]
        inner = self.rng.choice([d for d in range(1, x.shape[axis] + 1) if x.shape[axis] % d == 0])
        parts = self.space.divide(axes[axis], [x.shape[axis] // inner, inner])
        new = (*axes[:axis], *parts, *axes[axis + 1 :])
        shape = [a.size for a in new]
        self.add(x.reshape(shape), new, lambda xs, w: xs[at].reshape([self.space.width(a, w) for a in new]))

    def merge(self, at: int, axis: int) -> None:
        """A view of two neighboring axes as one."""
        x, axes = self.arrays[at], self.axes[at]
        if axis + 1 < x.ndim:
            new = (*axes[:axis], prod(axes[axis : axis + 2]), *axes[axis + 2 :])
            shape = [a.size for a in new]
            self.add(x.reshape(shape), new, lambda xs, w: xs[at].reshape([self.space.width(a, w) for a in new]))

    def transpose(self, at: int, axis: int) -> None:
        x, axes = self.arrays[at], self.axes[at]
        self.add(x.swapaxes(axis, -1), self._swapped(axes, axis), lambda xs, w: xs[at].swapaxes(axis, -1))

    @staticmethod
    def _swapped(axes: tuple[Axis, ...], axis: int) -> list[Axis]:
        new = list(axes)
        new[axis], new[-1] = new[-1], new[axis]
        return new

    def shuffle(self, at: int, axis: int) -> None:
        """The segments of an axis in another order; two segments are a roll."""
        x, axes = self.arrays[at], self.axes[at]
        n = x.shape[axis]
        points = sorted({self.rng.randrange(n) for _ in range(self.rng.randint(1, 2))} - {0})
        parts = self.space.cut(axes[axis], points)
        order = self.rng.sample(range(len(parts)), len(parts))

        def run(xs: list[np.ndarray], w: dict[int, int]) -> np.ndarray:
            ends = np.cumsum([self.space.width(part, w) for part in parts])
            pieces = np.split(xs[at], ends[:-1], axis)
            return np.concatenate([pieces[i] for i in order], axis)

        new = (*axes[:axis], concat(parts[i] for i in order), *axes[axis + 1 :])
        self.add(run(self.arrays, {}), new, run)

    def join(self, at: int, axis: int) -> None:
        """A tensor beside another of the same other axes."""
        x, axes = self.arrays[at], self.axes[at]
        for other, y in enumerate(self.arrays):
            rest = [i for i in range(x.ndim) if i != axis]
            if y.ndim == x.ndim and all(x.shape[i] == y.shape[i] for i in rest) and x.size + y.size < 2000:
                for i in rest:
                    self.space.unify(axes[i], self.axes[other][i])
                new = (*axes[:axis], concat([axes[axis], self.axes[other][axis]]), *axes[axis + 1 :])
                self.add(np.concatenate([x, y], axis), new, self._joined(at, other, axis))
                return

    @staticmethod
    def _joined(at: int, other: int, axis: int) -> Step:
        return lambda xs, w: np.concatenate([xs[at], xs[other]], axis)

    @staticmethod
    def _combined(at: int, other: int) -> Step:
        return lambda xs, w: xs[at] * 31 + xs[other]

    def combine(self, at: int, axis: int) -> None:
        """An elementwise operator of two tensors of one shape."""
        x = self.arrays[at]
        for other in self.rng.sample(range(len(self.arrays)), len(self.arrays)):
            y = self.arrays[other]
            if other != at and y.shape == x.shape:
                for a, b in zip(self.axes[at], self.axes[other], strict=True):
                    self.space.unify(a, b)
                self.add(x * 31 + y, self.axes[at], self._combined(at, other))
                return

    def step(self) -> None:
        at = self.rng.randrange(len(self.arrays))
        if self.arrays[at].ndim:
            operators = [self.divide, self.merge, self.transpose, self.shuffle, self.join, self.combine, self.combine]
            self.rng.choice(operators)(at, self.rng.randrange(self.arrays[at].ndim))

    def check(self) -> None:
        """Compute every tensor from smaller sources, and hold it against the full one less the removed positions."""
        keep = random_keep(self.rng, self.space, [axis for axes in self.axes for axis in axes])
        widths = {leaf: len(kept) for leaf, kept in keep.items()}
        small: list[np.ndarray] = []
        for array, axes, step in zip(self.arrays, self.axes, self.steps, strict=True):
            expected = array[np.ix_(*(self.space.kept(axis, keep) for axis in axes))]
            small.append(expected if step is None else step(small, widths))
            np.testing.assert_array_equal(small[-1], expected)


@settings(max_examples=400, deadline=None)
@given(seeds, st.integers(1, 3), st.integers(1, 9))
def test_operators_on_smaller_tensors_give_the_smaller_results(seed: int, sources: int, steps: int) -> None:
    machine = Machine(Random(seed))
    for _ in range(sources):
        machine.source()
    for _ in range(steps):
        machine.step()
    machine.check()


def fresh(space: Space, *sizes: int) -> list[Axis]:
    return [space.fresh(size) for size in sizes]


def test_products_are_refined_to_common_radices() -> None:
    space = Space()
    a, b, c, d = fresh(space, 2, 12, 6, 4)
    assert space.unify(prod([a, b]), prod([c, d]))
    first, middle, last = space.leaves(prod([a, b]))
    assert [first.size, middle.size, last.size] == [2, 3, 4]
    assert space.resolve(b) == prod([middle, last])
    assert space.resolve(c) == prod([first, middle])
    assert space.resolve(prod([c, d])) == space.resolve(prod([a, b]))
    assert not space.pins


def test_products_whose_radices_do_not_divide_are_pinned_with_the_reason() -> None:
    space = Space()
    a, b, c, d = fresh(space, 4, 6, 3, 8)
    assert not space.unify(prod([a, b]), prod([c, d]), "4·6 against 3·8")
    pinned = {leaf.id: space.pins[leaf.id] for axis in (a, b, c, d) for leaf in space.leaves(axis)}
    assert set(pinned.values()) == {"4·6 against 3·8"}


def test_a_channel_shuffle_after_a_concatenation_couples_nothing_but_what_it_interleaves() -> None:
    """ShuffleNetV2's unit twice: cat, view as 2 groups, transpose, and cut in the middle again."""
    space = Space()
    left, right = fresh(space, 6, 6)
    group, inner = space.divide(concat([left, right]), [2, 6])
    shuffled = prod([inner, group])
    first, second = space.cut(shuffled, [6])
    assert space.resolve(left) == space.resolve(right) == space.resolve(inner)
    assert isinstance(space.resolve(inner), Sum)
    assert not space.pins
    unit, other = space.leaves(inner)
    keep = {unit.id: [0, 2], other.id: [1]}
    assert space.kept(first, keep).tolist() == [0, 1, 4, 5]
    assert space.kept(second, keep).tolist() == [2, 3]


def test_a_roll_is_a_cut_and_a_concatenation() -> None:
    space = Space()
    (axis,) = fresh(space, 7)
    left, right = space.cut(axis, [5])
    rolled = concat([right, left])
    (a,), (b,) = space.leaves(left), space.leaves(right)
    keep = {a.id: [0, 3], b.id: [1]}
    full = np.arange(7)
    small = full[space.kept(axis, keep)]
    shift = space.width(right, {b.id: 1})
    np.testing.assert_array_equal(np.roll(small, shift), np.roll(full, 2)[space.kept(rolled, keep)])


def test_a_residual_around_a_roll_makes_units_that_follow_one_another_the_same() -> None:
    space = Space()
    (axis,) = fresh(space, 6)
    left, right = space.cut(axis, [2])
    assert space.unify(axis, concat([right, left]))
    first, second, third = space.leaves(axis)
    assert first == second == third
    assert space.kept(axis, {first.id: [1]}).tolist() == [1, 3, 5]


def test_a_cut_inside_of_a_head_makes_every_head_a_segment() -> None:
    space = Space()
    heads, dim = fresh(space, 3, 4)
    first, second = space.cut(prod([heads, dim]), [6])
    assert (first.size, second.size) == (6, 6)
    assert not space.pins
    assert list(space.leaves(heads)) == []  # no head can go alone


def test_a_cut_inside_of_too_many_segments_is_pinned() -> None:
    space = Space()
    outer, inner = fresh(space, MAX_SEGMENTS + 1, 4)
    parts = space.cut(prod([outer, inner]), [6], "too many")
    assert [part.size for part in parts] == [6, 4 * (MAX_SEGMENTS + 1) - 6]
    assert {space.pins[leaf.id] for axis in (outer, inner, *parts) for leaf in space.leaves(axis)} == {"too many"}


def test_pins_reach_what_a_leaf_is_refined_to_and_keep_their_first_reason() -> None:
    space = Space()
    pinned = space.fresh(12, "first")
    space.pin(pinned, "second")
    a, b = fresh(space, 3, 4)
    space.unify(pinned, prod([a, b]))
    assert [space.pins[leaf.id] for leaf in space.leaves(prod([a, b]))] == ["first", "first"]
    assert space.kept(pinned, {}).size == 12


def test_an_axis_that_is_its_own_neighbor_has_no_unit_to_lose() -> None:
    space = Space()
    (axis,) = fresh(space, 3)
    assert space.unify(concat([axis, ONE]), concat([ONE, axis]))
    assert list(space.leaves(axis)) == []


@pytest.mark.parametrize(("act", "message"), [
    (lambda s: s.unify(s.fresh(4), s.fresh(6)), "axes of 4 and 6 positions can't be the same axis"),
    (lambda s: s.divide(s.fresh(6), [4, 2]), r"an axis of 6 positions can't be viewed as \(4, 2\)"),
])
def test_sizes_that_do_not_fit_are_errors(act: Callable[[Space], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(Space())


@pytest.mark.parametrize(("build", "text"), [
    (lambda a, b, c: prod([a, prod([b, c])]), "(heads:2 head_dim:3 a2:4)"),
    (lambda a, b, c: concat([a, concat([b, c])]), "heads:2 + head_dim:3 + a2:4"),
    (lambda a, b, c: prod([concat([a, b]), c]), "({heads:2 + head_dim:3} a2:4)"),
    (lambda a, b, c: concat([prod([a, b]), ONE]), "(heads:2 head_dim:3) + 1"),
    (lambda a, b, c: prod([a, ONE]), "heads:2"),
    (lambda a, b, c: concat([b, concat([])]), "head_dim:3"),
    (lambda a, b, c: ONE, "1"),
])
def test_axes_print_in_einops_notation(build: Callable[[Axis, Axis, Axis], Axis], text: str) -> None:
    space = Space()
    a, b, c = fresh(space, 2, 3, 4)
    assert space.text(build(a, b, c), {0: "heads", 1: "head_dim"}) == text
