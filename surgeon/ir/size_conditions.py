"""What must hold of the sizes of a model's inputs: relations of whole numbers, as plain values.

>>> even = Condition(("==", ("%", ("size", 0, 2), 2), 0))
>>> even.holds({(0, 2): 6}), even.holds({(0, 2): 7}), even.text({(0, 2): "x axis 2"})
(True, False, 'x axis 2 % 2 == 0')
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

#: An axis of an input: which leaf of the inputs, and which of its axes.
Place = tuple[int, int]
#: A number, the size of an axis ("size", leaf, axis), or a function's name and its operands.
Term = Any


def _power(base: Any, exponent: Any) -> Any:
    return base**exponent


def _either(*values: Any) -> bool:
    return any(values)


def _both(*values: Any) -> bool:
    return all(values)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "+": lambda *values: sum(values),
    "*": lambda *values: reduce(operator.mul, values, 1),
    "**": _power,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "max": max,
    "min": min,
    "int": int,
    "float": float,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "or": _either,
    "and": _both,
    "not": operator.not_,
}
# The same for many sizes at once.
_OF_ARRAYS: dict[str, Callable[..., Any]] = {
    **_FUNCTIONS,
    "max": lambda *values: reduce(np.maximum, values),
    "min": lambda *values: reduce(np.minimum, values),
    "int": lambda value: np.asarray(value).astype(np.int64),
    "float": lambda value: np.asarray(value).astype(np.float64),
    "or": lambda *values: reduce(np.logical_or, values),
    "and": lambda *values: reduce(np.logical_and, values),
    "not": np.logical_not,
}
#: Drawn sizes by which conditions that say the same are told.
SAMPLES = 800
#: The largest size that is drawn.
HUGE = 2**24


@dataclass(frozen=True)
class Condition:
    """A relation between sizes."""

    term: Term

    def holds(self, sizes: Mapping[Place, Any]) -> bool:
        """Whether it holds of these sizes; what divides by zero does not."""
        try:
            return bool(_value(self.term, sizes, _FUNCTIONS))
        except ZeroDivisionError:
            return False

    def places(self) -> frozenset[Place]:
        """The axes whose sizes it reads."""
        return frozenset(_places(self.term))

    def text(self, names: Mapping[Place, str]) -> str:
        return _text(self.term, names)


@dataclass(frozen=True)
class Needed:
    """A condition that others don't imply, and sizes at which it does not hold, the others if possible do."""

    condition: Condition
    broken_at: Mapping[Place, int]


def needed(
    conditions: Iterable[Condition], sizes: Mapping[Place, int], varying: Mapping[Place, tuple[int, Iterable[Place]]]
) -> list[Needed]:
    """The conditions less those that say nothing beside the others, the simplest first.

    This is told by many drawn sizes. `sizes` are those of axes that don't vary; `varying` gives for each of the others
    a size to start from, near which sizes at which a condition is broken are, and the axes that are always of its size.

    >>> x = ("size", 0, 0)
    >>> found = [Condition((">=", x, 3)), Condition((">=", ("*", 2, x), 10)), Condition(("==", x, ("+", x, 0)))]
    >>> [(each.condition.text({(0, 0): "x"}), each.broken_at) for each in needed(found, {}, {(0, 0): (8, ())})]
    [('2 * x >= 10', {(0, 0): 4})]
    """
    drawn = _drawn(sizes, varying)
    found: list[tuple[Condition, np.ndarray]] = []
    for each in sorted(dict.fromkeys(conditions), key=lambda each: len(repr(each.term))):
        if each.places() & varying.keys():
            with np.errstate(all="ignore"):
                holds = np.broadcast_to(np.asarray(_value(each.term, drawn, _OF_ARRAYS)).astype(np.bool_), (SAMPLES,))
            if not holds.all():
                found.append((each, holds))
    kept: list[tuple[Condition, np.ndarray]] = []
    for place, (each, holds) in enumerate(found):
        others = [*(h for _, h in kept), *(h for _, h in found[place + 1 :] if not np.array_equal(h, holds))]
        if not any((~other | holds).all() for other in others):  # none implies it
            kept.append((each, holds))
    return [Needed(each, _broken(holds, [h for c, h in kept if c is not each], drawn, varying)) for each, holds in kept]


def agreeing(
    conditions: Iterable[Condition], sizes: Mapping[Place, int], varying: Mapping[Place, tuple[int, Iterable[Place]]]
) -> list[dict[Place, int]]:
    """Drawn sizes at which all conditions hold, none of an axis that it starts from, the nearest first.

    The arguments are those of `needed`.

    >>> x = ("size", 0, 0)
    >>> agreeing([Condition((">", x, 15)), Condition(("==", ("%", x, 4), 0))], {}, {(0, 0): (16, ())})[:2]
    [{(0, 0): 20}, {(0, 0): 24}]
    """
    drawn = _drawn(sizes, varying)
    good = np.all([drawn[place] != size for place, (size, _) in varying.items()], axis=0)
    with np.errstate(all="ignore"):
        for each in conditions:
            good &= np.asarray(_value(each.term, drawn, _OF_ARRAYS)).astype(np.bool_)
    order = np.argsort(_away(drawn, varying), kind="stable")
    found = [tuple((place, int(drawn[place][at])) for place in varying) for at in order[good[order]]]
    return [dict(each) for each in dict.fromkeys(found)]


def _away(drawn: Mapping[Place, Any], varying: Mapping[Place, tuple[int, Iterable[Place]]]) -> np.ndarray:
    """How far drawn sizes are from those to start from."""
    return np.sum([np.abs(np.log(drawn[place] / size)) for place, (size, _) in varying.items()], axis=0)


def _broken(
    holds: np.ndarray, others: list[np.ndarray], drawn: Mapping[Place, Any], varying: Mapping[Place, Any]
) -> dict[Place, int]:
    """Drawn sizes at which a condition does not hold: where the others do, and near the sizes to start from."""
    away = _away(drawn, varying)
    broken_too = np.sum([~other for other in others], axis=0) if others else np.zeros(len(holds))
    nearest = np.lexsort((away, broken_too, holds))[0]  # the last key counts first
    return {place: int(drawn[place][nearest]) for place in varying}


def _drawn(sizes: Mapping[Place, int], varying: Mapping[Place, tuple[int, Iterable[Place]]]) -> dict[Place, Any]:
    """Many sizes of each axis: small ones, those near the ones to start from and their multiples, and huge ones.

    Where one axis is huge, the others are as they start, so that no product is too large for an integer.
    """
    generator = np.random.default_rng(0)
    found: dict[Place, Any] = {place: np.full(SAMPLES, size) for place, size in sizes.items()}
    classes = {frozenset((place, *alike)): size for place, (size, alike) in varying.items()}
    huge = generator.integers(0, max(4 * len(classes), 1), SAMPLES)  # which class is, in a quarter of all samples
    for index, (places, size) in enumerate(classes.items()):
        kinds = [
            generator.integers(1, 9, SAMPLES),
            size + generator.integers(-8, 9, SAMPLES),
            size * generator.integers(1, 9, SAMPLES) // generator.integers(1, 5, SAMPLES),
            np.exp(generator.uniform(0, np.log(16 * size + 1), SAMPLES)).astype(np.int64),
        ]
        values = np.maximum(np.choose(generator.integers(0, len(kinds), SAMPLES), kinds), 1)
        largest = np.exp(generator.uniform(np.log(size), np.log(max(size, HUGE)), SAMPLES)).astype(np.int64)
        values = np.where(huge == index, largest, np.where(huge < len(classes), size, values))
        found |= dict.fromkeys(places, values)
    return found


def _value(term: Term, sizes: Mapping[Place, Any], functions: Mapping[str, Callable[..., Any]]) -> Any:
    if not isinstance(term, tuple):
        return term
    if term[0] == "size":
        return sizes[term[1], term[2]]
    return functions[term[0]](*[_value(each, sizes, functions) for each in term[1:]])


def _places(term: Term) -> Iterator[Place]:
    if isinstance(term, tuple):
        if term[0] == "size":
            yield term[1], term[2]
        else:
            for each in term[1:]:
                yield from _places(each)


def _text(term: Term, names: Mapping[Place, str], inner: bool = False) -> str:
    if not isinstance(term, tuple):
        return str(term)
    if term[0] == "size":
        return names[term[1], term[2]]
    if (term[0].isalpha() and len(term) != 3) or term[0] in ("max", "min"):
        return f"{term[0]}({', '.join(_text(each, names) for each in term[1:])})"
    relation = term[0] in ("==", "!=", "<", "<=", ">", ">=", "or", "and")
    parts = f" {term[0]} ".join(_text(each, names, not relation) for each in term[1:])
    return f"({parts})" if inner else parts
