"""One cut of a plan: which positions of one axis of one tensor stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from surgeon.errors import PlanError
from surgeon.support.arguments import listed, refusal


@dataclass(frozen=True)
class Cut:
    """The positions `keep`, ascending, of one tensor's `axis` of `size` positions that stay."""

    tensor: str
    axis: int
    size: int
    keep: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.tensor} axis {self.axis}: {self.size} → {len(self.keep)}"


def cuts(name: str, value: Any) -> tuple[Cut, ...]:
    found = listed(value)
    cut: Any
    for cut in (value,) if found is None else found:
        if not isinstance(cut, Cut) or type(cut.tensor) is not str or type(cut.keep) is not tuple:
            raise refusal(name, cut, "surgeon.plans.cuts.Cut(tensor, axis, size, keep) of a name, integers and a tuple")
        if odd := [n for n in (cut.axis, cut.size, *cut.keep) if type(n) is not int]:
            raise refusal(f"{name}: {cut.tensor}", odd[0], "integers")
    return found or ()


def composed(first: Iterable[Cut], second: Iterable[Cut]) -> Iterator[Cut]:
    """The cuts of both, where the second are of what the first leave.

    A tensor that was replaced in between, by one of another size, is cut as it was then.

    >>> list(composed([Cut("w", 0, 8, (1, 3, 5, 7))], [Cut("w", 0, 4, (0, 2))]))
    [Cut(tensor='w', axis=0, size=8, keep=(1, 5))]
    """
    later = {(cut.tensor, cut.axis): cut for cut in second}
    for cut in first:
        then = later.pop((cut.tensor, cut.axis), None)
        if then is None:
            yield cut
        elif then.size == len(cut.keep):
            yield replace(cut, keep=tuple(cut.keep[position] for position in then.keep))
        else:
            yield then
    yield from later.values()


def check_cut(cut: Cut) -> None:
    """Refuse a cut that does not fit any tensor.

    Raises:
        PlanError: the axis is impossible, or the indices are empty, unsorted, repeated or out of range.
    """
    place, keep = f"cut of {cut.tensor} axis {cut.axis}", cut.keep
    if cut.axis < 0 or cut.size < 1 or max(cut.axis, cut.size) >= 1 << 48:
        raise PlanError(f"{place} of {cut.size} positions: there is no such axis")
    if not keep:
        raise PlanError(f"{place}: no index is kept; at least one must be")
    if any(a >= b for a, b in pairwise(keep)):
        repeated = len(set(keep)) != len(keep)
        raise PlanError(f"{place}: the kept indices are {'repeated' if repeated else 'not strictly ascending'}")
    if keep[0] < 0 or keep[-1] >= cut.size:
        wrong = keep[0] if keep[0] < 0 else keep[-1]
        raise PlanError(f"{place}: index {wrong} is out of range for {cut.size} positions")
