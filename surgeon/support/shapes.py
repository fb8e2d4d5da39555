"""The shapes of inputs that a latency is of, each with its share of the runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from surgeon.errors import InvalidArgument
from surgeon.support.arguments import is_integer, is_number, refusal, shown

WANTED: Final = (
    "a shape such as (8, 3, 224, 224), or shapes with weights such as [((1, 3, 224, 224), 0.8), ((1, 3, 320, 320), "
    "0.2)]; of several inputs, a shape is a dict of theirs by name"
)
ONLY: Final = ""
"""What stands for the name of a model's only input."""
_MOST: Final = 1 << 26
"""The most values of an input."""


@dataclass(frozen=True)
class Shaped:
    """The shapes of a run's inputs by name, `ONLY` for the only one, and which share of all runs has them.

    >>> print(Shaped({"": (8, 3, 224, 224)}, 1.0))
    8×3×224×224
    """

    sizes: Mapping[str, tuple[int, ...]]
    weight: float = field(default=1.0)

    def __str__(self) -> str:
        return ", ".join(f"{name} {'×'.join(map(str, sizes))}".strip() for name, sizes in self.sizes.items())


def shapes(name: str, value: Any) -> tuple[Shaped, ...]:
    """The shapes of a mixture, with weights that sum to 1; lists and tuples are taken.

    >>> [(str(each), round(each.weight, 2)) for each in shapes("shapes", [((1, 3, 32, 32), 8), ((1, 3, 64, 64), 2)])]
    [('1×3×32×32', 0.8), ('1×3×64×64', 0.2)]
    >>> [str(each) for each in shapes("shapes", {"ids": (4, 128), "mask": (4, 128)})]
    ['ids 4×128, mask 4×128']
    >>> shapes("shapes", (0, 3))
    Traceback (most recent call last):
        ...
    surgeon.errors.InvalidArgument: shapes: the sizes of a shape are positive integers, not (0, 3)
    """
    if isinstance(value, tuple) and value and all(isinstance(each, Shaped) for each in value):
        return value
    if not _is_shape(value) and not isinstance(value, list | tuple):
        raise refusal(name, value, WANTED)
    found: list[Shaped] = []
    for entry in [value] if _is_shape(value) else value:
        shape, weight = (entry, 1.0) if _is_shape(entry) or not _is_pair(entry) else entry
        if not _is_shape(shape):
            raise refusal(name, entry, WANTED)
        if not is_number(weight) or not 0 < weight < math.inf:
            raise InvalidArgument(f"{name}: the weight of {shown(shape)} is {shown(weight)}; give a number above 0")
        found.append(Shaped(_sizes(name, shape), float(weight)))
    if len({str(each) for each in found}) < len(found):
        raise InvalidArgument(f"{name} holds {', '.join(map(str, found))}; give each shape once, with its weight")
    total = sum(each.weight for each in found)
    return tuple(Shaped(each.sizes, each.weight / total) for each in found)


def _is_shape(value: Any) -> bool:
    """Whether it is one shape, or a mapping of several inputs' shapes, whatever its sizes are."""
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list | tuple) and bool(value) and all(map(is_number, value))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _brief(value: Any) -> str:
    return repr(value) if isinstance(value, list | tuple) and all(map(is_number, value)) else shown(value)


def _sizes(name: str, shape: Any) -> dict[str, tuple[int, ...]]:
    named = shape if isinstance(shape, Mapping) else {ONLY: shape}
    found: dict[str, tuple[int, ...]] = {}
    for each, given in named.items():
        sizes = given if isinstance(given, list | tuple) else ()
        if not isinstance(each, str) or not sizes or not all(is_integer(size) and size > 0 for size in sizes):
            raise InvalidArgument(f"{name}: the sizes of a shape are positive integers, not {_brief(given)}")
        if math.prod(sizes) > _MOST:
            raise InvalidArgument(f"{name}: an input of {math.prod(sizes):,} values; at most {_MOST:,} are made up")
        found[each] = tuple(int(size) for size in sizes)
    return found
