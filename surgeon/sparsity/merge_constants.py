"""Constant channels that no bias can absorb: one of them absorbs the others.

Under a convolution with zero padding, a constant channel contributes less at the borders, so no bias can replace it.
Another constant channel can: the removed channel's kernels, times the ratio of the two constants, are added to its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from surgeon.groups.coupling import Group, Groups
from surgeon.sparsity.readers import Reader


@dataclass(frozen=True)
class Merge:
    """The unit `left` absorbs the units `gone`, in each of the readers."""

    left: int
    gone: tuple[int, ...]
    readers: tuple[Reader, ...]

    def shifts(self, groups: Groups) -> dict[str, np.ndarray]:
        """The changes of the readers' weights, by name."""
        found = {}
        for reader in self.readers:
            assert reader.weight is not None and reader.values is not None
            values = np.nan_to_num(reader.values[0])
            name = next(n for n, first in groups.graph.canonical.items() if first == reader.weight)
            weight = groups.graph.tensor(name).detach().double().numpy()
            shift = np.zeros(weight.shape)
            gone = list(self.gone)
            shift[:, self.left] = np.tensordot(weight[:, gone], values[gone] / values[self.left], axes=([1], [0]))
            found[reader.weight] = shift
        return found


def merge(groups: Groups, group: Group, blockers: Mapping[int, list[Reader]]) -> Merge | None:
    """The merge of units that can't be removed otherwise; None if there are fewer than two that can be merged.

    `blockers` are the readers because of which each unit can't be removed.
    """
    able = [unit for unit, readers in blockers.items() if all(_constant(groups, group, r, unit) for r in readers)]
    found = {id(reader): reader for unit in able for reader in blockers[unit]}
    readers = tuple(found.values())
    if len(able) < 2:
        return None
    sizes = [min(_size(reader, unit) for reader in readers) for unit in able]
    left = able[int(np.argmax(sizes))]  # the largest constant, so that weights grow little
    return Merge(left, tuple(unit for unit in able if unit != left), readers) if max(sizes) > 0 else None


def _size(reader: Reader, unit: int) -> float:
    """The magnitude of a unit's constant; 0 if it is not constant."""
    assert reader.values is not None
    return float(abs(np.nan_to_num(reader.values[0, unit])))


def _constant(groups: Groups, group: Group, reader: Reader, unit: int) -> bool:
    """Whether only padding prevents the removal of a constant unit, and the reader's channels are the group's units."""
    return (
        reader.padded
        and reader.weight is not None
        and reader.values is not None
        and groups.space.resolve(reader.axis) == group.leaf
        and len(reader.values) == 1
        and bool(np.isfinite(reader.values[0, unit]))
    )
