"""A limit on time: it ends work on formulas, leaves other code alone, and leaves nothing behind."""

from __future__ import annotations

import fractions
import threading
from contextlib import suppress

import pytest

from surgeon.support.time_limit import TimeIsUp, limited


def _on_fractions(steps: int) -> int:
    total = fractions.Fraction(0)
    for step in range(steps):
        total = fractions.Fraction(1, step + 1)
    return total.denominator


def test_work_that_ends_in_time_is_left_alone() -> None:
    with limited(60.0, ("fractions.py",)):
        assert _on_fractions(10) == 10


def test_work_elsewhere_is_not_stopped() -> None:
    with limited(0.0, ("no such file",)):
        assert _on_fractions(100_000) == 100_000


def _stubborn() -> None:
    while True:
        with suppress(Exception):
            _on_fractions(100)


def test_no_exception_handler_on_the_way_takes_it() -> None:
    with pytest.raises(TimeIsUp), limited(0.0, ("fractions.py",)):
        _stubborn()


def test_an_error_passes() -> None:
    with pytest.raises(ZeroDivisionError), limited(60.0, ("fractions.py",)):
        fractions.Fraction(1, 0)


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with limited(60.0, ()):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
