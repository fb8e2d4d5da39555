"""The fast widths of a group: those that make whole NCHWc blocks wherever the group is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from surgeon.latency.operators import Operator
from surgeon.latency.ort_layout import Paths

#: The most fast widths of a group that are considered: for wider groups, the steps are larger.
MOST_STEPS = 48


def fast_widths(
    leaf: int, size: int, operators: Iterable[Operator], paths: Paths, most: int = MOST_STEPS
) -> tuple[int, ...]:
    """The fast widths of a leaf of this size, ascending, with its size as the last; about `most` of them at most.

    Where a unit of the leaf stands for several channels, the step of the leaf is smaller by that factor.
    """
    grain = 1
    for operator in operators:
        for place, inside in _inside(operator, leaf):
            wanted = paths.grain(operator, place, size * inside)
            grain = math.lcm(grain, wanted // math.gcd(wanted, inside))
    while grain > 1 and size // grain < 2:
        grain //= 2
    while size // grain > most:
        grain *= 2
    return (*range(grain, size, grain), size)


def _inside(operator: Operator, leaf: int) -> Iterator[tuple[int, int]]:
    """The places of the sizes that depend on the leaf, and how many channels a unit of it stands for there.

    A grouped convolution has blocks of channels within each of its groups, so the number of groups does not matter.
    """
    having = [any(leaf in leaves for leaves in terms) for terms in operator.dims]
    for place, terms in enumerate(operator.dims):
        if not having[place]:
            continue
        if operator.kind != "grouped":
            yield place, max(1, round(min(factor for leaves, factor in terms.items() if leaf in leaves)))
        elif place == 2 or (place == 1 and having[0] <= having[2]):
            yield place, 1
