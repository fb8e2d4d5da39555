"""Relations between sizes: whether they hold, how they read, and which of several are needed."""

from __future__ import annotations

from typing import Any

import pytest

from surgeon.ir.size_conditions import Condition, Place, needed

X, Y = ("size", 0, 0), ("size", 0, 1)
NAMES: dict[Place, str] = {(0, 0): "x", (0, 1): "y"}

# A term, sizes of x and y, whether it holds, and how it reads.
TERMS: list[tuple[Any, tuple[int, int], bool, str]] = [
    ((">=", X, 3), (3, 0), True, "x >= 3"),
    ((">=", X, 3), (2, 0), False, "x >= 3"),
    (("==", ("%", ("+", X, 1), 4), 0), (7, 0), True, "((x + 1) % 4) == 0"),
    (("<", ("*", X, Y), 12), (3, 4), False, "(x * y) < 12"),
    (("==", ("//", X, 2), Y), (7, 3), True, "(x // 2) == y"),
    (("==", ("/", X, 2), 3.5), (7, 3), True, "(x / 2) == 3.5"),
    (("==", ("max", X, Y), 7), (7, 3), True, "max(x, y) == 7"),
    (("or", ("==", X, 1), ("!=", Y, 1)), (2, 1), False, "x == 1 or y != 1"),
    (("not", ("==", X, Y)), (2, 1), True, "not(x == y)"),
    (("==", ("%", X, Y), 0), (2, 0), False, "(x % y) == 0"),
]


@pytest.mark.parametrize(("term", "sizes", "holds", "text"), TERMS)
def test_terms(term: Any, sizes: tuple[int, int], holds: bool, text: str) -> None:
    condition = Condition(term)
    assert condition.holds({(0, 0): sizes[0], (0, 1): sizes[1]}) is holds
    assert condition.text(NAMES).replace("(", "").replace(")", "") == text.replace("(", "").replace(")", "")


# Conditions of x and y, and those that are needed.
SETS: list[tuple[list[Any], list[str]]] = [
    ([("==", X, X), (">=", X, 1)], []),
    ([(">=", X, 3), (">=", X, 5), ("!=", X, 4)], ["x >= 5"]),
    ([("<=", X, 9), (">=", X, 2)], ["x <= 9", "x >= 2"]),
    ([("==", ("%", X, 2), 0), ("==", ("%", ("*", 2, X), 4), 0)], ["x % 2 == 0"]),
    ([("==", X, Y)], ["x == y"]),
    ([("<=", X, 8192), ("<=", ("*", X, Y), 100_000)], ["x * y <= 100000", "x <= 8192"]),
]


@pytest.mark.parametrize(("terms", "texts"), SETS)
def test_what_others_imply_is_left_out(terms: list[Any], texts: list[str]) -> None:
    found = needed([Condition(term) for term in terms], {}, {(0, 0): (6, ()), (0, 1): (8, ())})
    assert sorted(each.condition.text(NAMES).replace("(", "").replace(")", "") for each in found) == texts
    assert not any(each.condition.holds(each.broken_at) for each in found)


def test_axes_that_vary_together_are_drawn_together() -> None:
    equal = Condition(("==", X, Y))
    assert needed([equal], {}, {(0, 0): (6, [(0, 1)]), (0, 1): (6, [(0, 0)])}) == []


def test_axes_that_do_not_vary_have_their_size() -> None:
    product = Condition((">=", ("*", X, Y), 12))
    (found,) = needed([product], {(0, 1): 4}, {(0, 0): (6, ())})
    assert found.broken_at[0, 0] < 3
