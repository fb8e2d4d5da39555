"""The shapes that a latency is of, as users write them."""

from typing import Any

import pytest

from surgeon.errors import InvalidArgument
from surgeon.support.shapes import Shaped, shapes

TAKEN: list[tuple[Any, list[tuple[str, float]]]] = [
    ((8, 3, 32, 32), [("8×3×32×32", 1.0)]),
    ([1, 16], [("1×16", 1.0)]),
    ([(1, 16), [1, 32]], [("1×16", 0.5), ("1×32", 0.5)]),
    ([((1, 16), 3), ((1, 32), 1)], [("1×16", 0.75), ("1×32", 0.25)]),
    ({"ids": (2, 16), "mask": [2, 16]}, [("ids 2×16, mask 2×16", 1.0)]),
    ([({"ids": (2, 16)}, 1e-3)], [("ids 2×16", 1.0)]),
    ([], []),
]


@pytest.mark.parametrize(("given", "found"), TAKEN)
def test_what_is_taken(given: Any, found: list[tuple[str, float]]) -> None:
    made = shapes("shapes", given)
    assert [str(each) for each in made] == [name for name, _ in found]
    assert [each.weight for each in made] == pytest.approx([weight for _, weight in found])
    assert shapes("shapes", made) == made


REFUSED: list[tuple[Any, str]] = [
    ((0, 3), r"positive integers, not \(0, 3\)"),
    ((1.5, 3), "positive integers, not"),
    ([((1, 3), 0)], "the weight of a tuple is 0; give a number above 0"),
    ([((1, 3), float("inf"))], "the weight of"),
    ([((1, 3), "much")], "the weight of"),
    ([(1, 3), (1, 3)], "shapes holds 1×3, 1×3; give each shape once"),
    ({"x": 3}, "positive integers, not 3"),
    ({3: (1, 3)}, "positive integers"),
    ("1,3", "shapes='1,3': give a shape such as"),
    ([(1, 3), 5], "shapes=5: give a shape such as"),
    (((1, 3), (2, 3), (0.5,)), "positive integers"),
    ((1 << 20, 1 << 20), "an input of 1,099,511,627,776 values; at most"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        shapes("shapes", given)


def test_a_shape_has_its_weight_as_given() -> None:
    assert shapes("shapes", (Shaped({"": (1, 2)}, 0.25),))[0].weight == 0.25
