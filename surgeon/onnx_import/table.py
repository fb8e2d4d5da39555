"""The table from an operator of ONNX to a function of torch operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from surgeon.onnx_import.values import integers

if TYPE_CHECKING:
    from surgeon.onnx_import.running import Operator

_F = TypeVar("_F", bound=Callable[..., Any])
MICROSOFT = "com.microsoft"
#: The domain of operators that stand for several of a file.
INTERNAL = "\0"


class NotCovered(Exception):
    """A row does not cover how its operator is called, and the operator falls back; the message says why."""


@dataclass(frozen=True)
class Row:
    """A function of an operator and its inputs, None for one that is left out; it returns the output, or a list.

    The inputs at `numbers` are Numbers, the others tensors; where the row is `mixed`, they may be Numbers too. Those at
    `buffers` are state, not trained. A `scoped` one takes the scope that it runs in before its inputs.
    """

    function: Callable[..., Any]
    numbers: frozenset[int] = frozenset()
    mixed: bool = False
    buffers: frozenset[int] = frozenset()
    scoped: bool = False


ROWS: dict[tuple[str, str], Row] = {}

#: Functions of operators whose inputs are all Numbers, None for one that is left out; they return Numbers, or a list.
NUMERIC: dict[str, Callable[..., Any]] = {}


def operator(
    *names: str, domain: str = "", numbers: tuple[int, ...] = (), mixed: bool = False, buffers: tuple[int, ...] = (),
    scoped: bool = False,
) -> Callable[[_F], _F]:
    """Add a row for operators of these names."""

    def add(function: _F) -> _F:
        for name in names:
            ROWS[domain, name] = Row(function, frozenset(numbers), mixed, frozenset(buffers), scoped)
        return function

    return add


def numeric(*names: str) -> Callable[[_F], _F]:
    """Add a function for operators of these names whose inputs are all Numbers."""

    def add(function: _F) -> _F:
        NUMERIC.update(dict.fromkeys(names, function))
        return function

    return add


def row(domain: str, name: str) -> Row | None:
    return ROWS.get((domain, name))



def axes_of(o: Operator, value: Any) -> list[int] | None:
    """The axes of an operator: an attribute in older opsets, an input in newer ones."""
    found = o.get("axes", None) if value is None else integers(value)
    return None if found is None else [int(each) for each in found]
