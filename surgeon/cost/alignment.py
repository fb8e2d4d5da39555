"""What group widths should be multiples of, so that operators use fast kernels, and which groups are inner factors."""

from __future__ import annotations

import math

from surgeon.cost.cost import Cost, positions_inside, products
from surgeon.groups.coupling import Group, Groups
from surgeon.ir.axes import leaves

NARROW = 16
"""Below this many channels, convolutions are computed by slower kernels."""
FINENESS = (NARROW, 8, 4, 2, 1)
"""Upper bounds of the default alignment, in the order in which they are tried."""


class Alignment:
    """How the units of each group appear in the weights.

    `inside` gives the numbers of contiguous positions of one unit for each leaf, `inner` the leaves that are inner
    factors of an axis of some weight, such as the size of a head or the channels per group. The head size of attention
    counts as inner even with a single head, since the scale of attention depends on it.
    """

    def __init__(self, groups: Groups, cost: Cost) -> None:
        self.groups = groups
        self.inside, self.inner = cost.inside() or _products(groups, cost)

    def steps(self, align: int | None = None, finest: int = NARROW) -> dict[int, int]:
        """The number of units of which each leaf's width must be a multiple.

        `align` is in positions, as for `surgeon.shrink`; if it is None, `finest` is an upper bound of the default.
        """
        return {group.leaf.id: self.step(group, align, finest) for group in self.groups}

    def step(self, group: Group, align: int | None, finest: int) -> int:
        """As `steps`, for one group."""
        size = group.size
        if align is None and size < 8:
            return 1
        wanted = []
        for positions in self.inside[group.leaf.id]:
            total = size * positions
            multiple = align or min(16 if total >= 32 else 8 if total >= 24 else 4, finest)
            wanted.append(multiple // math.gcd(multiple, positions))
        step = max(wanted)
        while align is None and step > 1 and size // step < 2:
            step //= 2
        return step


def _products(groups: Groups, cost: Cost) -> tuple[dict[int, set[int]], set[int]]:
    weights = {name for share in cost.shares("macs") for name in share.tensors}
    inside: dict[int, set[int]] = {}
    others: dict[int, set[int]] = {}
    outer: set[int] = set()
    inner: set[int] = set()
    for name, axes in groups.tensors.items():
        for axis in axes:
            resolved = groups.space.resolve(axis)
            for leaf, positions in positions_inside(resolved):
                (inside if name in weights else others).setdefault(leaf, set()).add(positions)
            for factors in products(resolved):
                found = [leaf.id for factor in factors for leaf in leaves(factor) if leaf.id in cost.order]
                if len(found) > 1:
                    outer.add(found[0])
                    inner.update(found[1:])
    every = {leaf: inside.get(leaf) or others.get(leaf) or {1} for leaf in cost.order}
    scaled = {
        leaf.id
        for typed in groups.typed.values()
        if "scale" in typed.args
        for axis in typed.contracted
        for leaf in groups.space.leaves(axis)
    }
    return every, (inner - outer) | scaled
