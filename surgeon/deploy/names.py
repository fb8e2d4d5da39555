"""Names that nothing else has."""

from __future__ import annotations

from collections.abc import Container


def new_name(wish: str, taken: Container[str]) -> str:
    """`wish`, with a number after it where that is taken.

    >>> new_name("x", {"x", "x_1"})
    'x_2'
    """
    name, number = wish, 1
    while name in taken:
        name, number = f"{wish}_{number}", number + 1
    return name
