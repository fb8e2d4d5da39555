"""The calls of two programs that stand for one another, also where some of them are written in another way."""

from __future__ import annotations

from typing import Any

from surgeon.surgery.record import Recorder


class Notes(Recorder):
    """Notes all calls, also of code whose calls do not tell all that it computes, as they tell its shapes."""

    @property
    def _doubt(self) -> bool:
        return False

    @_doubt.setter
    def _doubt(self, found: bool) -> None:
        pass

    @property
    def count(self) -> int:
        """How many calls were noted."""
        return len(self._calls)

    @property
    def notes(self) -> list[Any]:
        """What each call is told from others by."""
        return [(call.operator, call.shapes, call.types) for call in self._calls]


#: How far calls are looked ahead for where two programs go on together, and how many must be the same there.
_AHEAD, _SAME = 60, 3


def aligned(one: list[Any], other: list[Any]) -> dict[int, int]:
    """The calls of one program by place, and those of another that stand for them.

    >>> aligned(["a", "b", "c", "d"], ["a", "x", "c", "d"])
    {0: 0, 2: 2, 3: 3}
    """
    found: dict[int, int] = {}
    at = (0, 0)
    while at[0] < len(one) and at[1] < len(other):
        if one[at[0]] == other[at[1]]:
            found[at[0]] = at[1]
            at = at[0] + 1, at[1] + 1
            continue
        for steps in range(1, 2 * _AHEAD):
            places = ((at[0] + step, at[1] + steps - step) for step in range(steps + 1))
            match = next((place for place in places if _go_on(one, other, *place)), None)
            if match is not None:
                break
        if match is None:
            break
        at = match
    return found


def _go_on(one: list[Any], other: list[Any], i: int, j: int) -> bool:
    ours, theirs = one[i : i + _SAME], other[j : j + _SAME]
    length = min(len(ours), len(theirs))
    return length > 0 and ours[:length] == theirs[:length]
