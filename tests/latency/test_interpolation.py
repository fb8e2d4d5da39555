"""What an operator takes at any sizes: exact at the corners, linear in between, in whole blocks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.latency.interpolation import filled, through

SIDE = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(SIDE, min_size=1, max_size=3), st.data())
def test_surface_is_exact_at_corners_and_halfway_the_mean(sides: list[tuple[int, int]], data: st.DataObject) -> None:
    count = 2 ** len(sides)
    values = data.draw(st.lists(st.floats(1, 2), min_size=count, max_size=count))
    corners = dict(zip(itertools.product(*sides), values, strict=True))
    surface = through(corners, range(len(sides)))
    for dims, value in corners.items():
        assert float(surface.at(dims)) == pytest.approx(value)
    assert float(surface.at([(a + b) / 2 for a, b in sides])) == pytest.approx(sum(values) / count)


@given(st.integers(1, 100), st.integers(1, 16))
def test_sizes_are_filled_up_to_whole_blocks(size: int, block: int) -> None:
    whole = float(filled(size, block))
    assert whole % block == 0
    assert 0 <= whole - size < block


def test_sizes_within_a_block_take_the_same() -> None:
    surface = through({(16,): 1.0, (64,): 4.0}, (0,), block=16)
    assert [float(surface.at((size,))) for size in (33, 40, 48, 49)] == [3.0, 3.0, 3.0, 4.0]


def test_corners_in_the_same_block_are_one() -> None:
    surface = through({(17, 8): 2.0, (17, 16): 4.0, (30, 8): 2.5, (30, 16): 4.5}, (0, 1), block=16)
    assert float(surface.at((20, 12))) == 2.0


def test_sizes_that_do_not_vary_are_left_alone() -> None:
    surface = through({(3, 16): 1.0, (3, 48): 3.0}, (1,))
    assert float(surface.at((999, 32))) == 2.0


def test_far_below_the_corners_something_is_left() -> None:
    surface = through({(100,): 1.0, (200,): 10.0}, (0,))
    assert float(surface.at((1,))) == 0.25


def test_far_below_the_corners_a_share_of_the_work_is_left() -> None:
    """A matrix that fits a nearer cache is quicker than a line through larger ones says, but not for nothing."""
    surface = through({(a, b): float(a * b) ** 2 for a in (10, 20) for b in (10, 20)}, (0, 1), least=50.0)
    assert float(surface.at((5, 5))) == 2500.0
    assert float(surface.at((1, 10))) == 1000.0
    assert float(surface.at((5, 15))) == float(surface.at((10, 15))) / 2
    # Linear in each size, the product of both turns up again below.
    steep = through({(10, 10): 1.0, (10, 20): 2.0, (20, 10): 2.0, (20, 20): 30.0}, (0, 1))
    assert float(steep.at((2, 2))) == 1.0
    assert float(through({(10,): 1e4, (20,): 9e4}, (0,), least=2000.0).at((1,))) == 2000.0


def test_arrays_broadcast() -> None:
    surface = through({(a, b): float(a * b) for a in (10, 20) for b in (10, 20)}, (0, 1))
    a, b = np.ix_(np.arange(10.0, 21), np.arange(10.0, 15))
    np.testing.assert_allclose(surface.at((a, b)), a * b)
