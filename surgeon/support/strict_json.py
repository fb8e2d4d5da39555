"""JSON that is not trusted: no duplicate names, only finite numbers, and limits on depth and size.

>>> loads(b'{"a": 1, "a": 2}')
Traceback (most recent call last):
    ...
surgeon.support.opening.Unfit: it is not valid JSON: the entry "a" is there twice
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, Final

from surgeon.support.opening import Unfit

DEPTH: Final = 100
"""The deepest nesting of lists and objects."""
VALUES: Final = 3_000_000
"""The most values: one of two bytes in the file can take a hundred bytes in Python."""
_DIGITS: Final = 60


def loads(content: bytes | str, *, depth: int = DEPTH, values: int = VALUES, finite: bool = True) -> Any:
    """The value of the JSON text `content`, in UTF-8.

    Infinity and NaN are accepted if `finite` is false.

    Raises:
        Unfit: it is not valid JSON, repeats a name in an object, or exceeds a limit.
    """
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if sum(map(data.count, (b",", b"[", b"{"))) > values:
        raise Unfit(f"it has more than {values:,} values")
    try:
        found = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number if finite else None,
            parse_constant=_refuse if finite else None,
        )
    except RecursionError as error:
        raise Unfit(f"it is nested more than {depth} deep") from error
    except ValueError as error:
        raise Unfit(f"it is not valid JSON: {error}") from error
    _check_depth(found, depth)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f'the entry "{twice[:80]}" is there twice')
    return found


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not finite")
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not finite")


def _check_depth(found: Any, limit: int) -> None:
    level = [found] if isinstance(found, (dict, list)) else []
    for _ in range(limit):
        if not level:
            return
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
    if level:
        raise Unfit(f"it is nested more than {limit} deep")
