"""The widths of a group that are worth a look: those that fill whole NCHWc blocks wherever the group is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from surgeon.latency.operators import Operator
from surgeon.latency.ort_layout import Paths

#: Fast widths of a group that are looked at: a wider group is looked at in larger steps.
MOST_STEPS = 48


def fast_widths(
    leaf: int, size: int, operators: Iterable[Operator], paths: Paths, most: int = MOST_STEPS
) -> tuple[int, ...]:
    """The fast widths of a leaf of this size, ascending, its size the last; about `most` of them at most.

    A size that a unit of the leaf adds several channels to needs a coarser step of the leaf by so much less.
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
    """The places of the sizes that depend on the leaf, and for how many channels a unit of it counts there.

    A grouped convolution fills blocks of channels within each of its groups: how many groups there are does not matter.
    """
    having = [any(leaf in leaves for leaves in terms) for terms in operator.dims]
    for place, terms in enumerate(operator.dims):
        if not having[place]:
            continue
        if operator.kind != "grouped":
            yield place, max(1, round(min(factor for leaves, factor in terms.items() if leaf in leaves)))
        elif place == 2 or (place == 1 and having[0] <= having[2]):
            yield place, 1
