"""How rules read an operator's arguments: where they need a number, a computed one is not covered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.ir.axes import Axis
from surgeon.rules.base import RuleDoesNotApply


def number(a: Mapping[str, Any], name: str) -> int:
    """An argument that is a whole number. Raises RuleDoesNotApply where it is computed.

    >>> number({"groups": 4}, "groups")
    4
    """
    return numbers(a, name, [a[name]])[0]


def numbers(a: Mapping[str, Any], name: str, values: Sequence[Any] | None = None) -> list[int]:
    """An argument that is a list of whole numbers. Raises RuleDoesNotApply where one of them is computed."""
    found = list(a[name] if values is None else values)
    if not all(isinstance(value, int) for value in found):
        raise RuleDoesNotApply(f"{name} is computed")
    return found


def axis_at(a: Mapping[str, Any], axes: Sequence[Axis], name: str = "dim") -> int:
    """The index of the axis that an argument names, counted from the front. Raises RuleDoesNotApply without axes.

    >>> from surgeon.ir.axes import ONE
    >>> axis_at({"dim": -1}, [ONE, ONE])
    1
    """
    if not axes:
        raise RuleDoesNotApply("a tensor without axes")
    return number(a, name) % len(axes)
