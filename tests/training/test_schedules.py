"""Schedules at their ends and in between, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.errors import InvalidArgument
from surgeon.training import schedules
from surgeon.training.schedules import Schedule, share_at

SCHEDULES = [
    schedules.one_shot(20),
    schedules.steps(20, 100, 5),
    schedules.cubic(20, 100, every=7),
    schedules.exponential(20, 100, every=7, rate=2.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_never_falls_and_ends_at_one(schedule: Schedule) -> None:
    shares = [share_at(schedule, step) for step in range(150)]
    assert shares[:20] == [0.0] * 20
    assert shares == sorted(shares)
    assert shares[100:] == [1.0] * 50


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 60))
def test_n_steps_take_equal_shares(start: int, length: int, n: int) -> None:
    if n > length + 1:
        with pytest.raises(InvalidArgument, match=f"n={n}: only {length + 1} steps lie"):
            schedules.steps(start, start + length, n)
        return
    schedule = schedules.steps(start, start + length, n)
    shares = [schedule(step) for step in range(start + length + 2)]
    rises = [b - a for a, b in pairwise([0.0, *shares]) if b > a]
    assert rises == pytest.approx([1 / n] * n)
    assert schedule(start) == pytest.approx(1 / n)


def test_cubic_is_the_paper_s() -> None:
    schedule = schedules.cubic(start=10, end=50, every=10)
    assert [schedule(step) for step in (10, 20, 30, 40, 50)] == [1 - (1 - t / 4) ** 3 for t in range(5)]
    assert schedule(29) == schedule(20)


def test_exponential_takes_the_same_fraction_of_what_is_left() -> None:
    schedule = schedules.exponential(0, 4, rate=-math.log(1 - 0.8))
    left = [1 - 0.8 * schedule(step) for step in range(5)]
    assert [b / a for a, b in pairwise(left)] == pytest.approx([0.2**0.25] * 4)


def test_equal_arguments_are_equal_schedules() -> None:
    assert schedules.cubic(1, 2) == schedules.cubic(1, 2) != schedules.cubic(1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.one_shot(-1), "at=-1: give an integer of at least 0"),
        (lambda: schedules.one_shot(True), "at=True: give an integer"),
        (lambda: schedules.steps(5, 4, 1), "end=4: give an integer of at least 5"),
        (lambda: schedules.steps(0, 4, 0), "n=0: give an integer of at least 1"),
        (lambda: schedules.cubic(5, 5), "end=5: give an integer of at least 6"),
        (lambda: schedules.cubic(0, 5, every=0), "every=0: give an integer of at least 1"),
        (lambda: schedules.cubic(0, 5.5), r"end=5\.5: give an integer"),  # type: ignore[arg-type]
        (lambda: schedules.exponential(0, 5, rate=0.0), r"rate=0\.0: give a number above 0"),
        (lambda: share_at(lambda step: 1.5, 3), r"gives 1\.5 at step 3: a share of the target is from 0 to 1"),
        (lambda: share_at(lambda step: math.nan, 3), "gives nan at step 3"),
        (lambda: share_at(lambda step: "all", 3), "gives 'all' at step 3"),  # type: ignore[arg-type, return-value]
        (lambda: share_at(0.5, 3), r"schedule=0\.5: give one of surgeon\.schedules"),  # type: ignore[arg-type]
    ],
)
def test_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidArgument, match=message):
        make()
