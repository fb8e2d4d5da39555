"""Interpolation of an operator's milliseconds between the sizes at which it was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Surface:
    """Milliseconds over the sizes at `places`, interpolated linearly in each of them between the corners.

    `low` and `high` are the corners' sizes there; `values` has an axis of size 2 for each place. Sizes are first
    rounded up to whole blocks of `block`, as they are computed.
    """

    places: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    values: np.ndarray
    block: int = 1
    least: float | None = None

    def at(self, dims: Sequence[np.ndarray | float]) -> np.ndarray:
        """The milliseconds at sizes that broadcast. Below the corners, at most the nearest edge's value, and at least
        that in proportion to the work, and at least `least`, by default a quarter of the least corner.

        >>> corners = {(16, 16): 1.0, (16, 64): 4.0, (64, 16): 4.0, (64, 64): 16.0}
        >>> surface = through(corners, (0, 1), block=16)
        >>> float(surface.at((32, 32))), float(surface.at((17, 32)))
        (4.0, 4.0)
        """
        sizes = [np.asarray(dims[place], dtype=np.float64) for place in self.places]
        work: np.ndarray = np.ones(())
        for size, a in zip(sizes, self.low, strict=True):
            work = work * np.minimum(1.0, size / a)
        edge = self._linear([np.maximum(size, a) for size, a in zip(sizes, self.low, strict=True)])
        low = self.values.min()
        least = low / 4 if self.least is None else min(self.least, low / 4)
        return np.maximum(np.clip(self._linear(sizes), edge * work, edge), least)

    def _linear(self, sizes: Sequence[np.ndarray]) -> np.ndarray:
        """Linear in each size, through the corners and on beyond them."""
        shares = []
        for size, a, b in zip(sizes, self.low, self.high, strict=True):
            share = (filled(size, self.block) - a) / (b - a)
            shares.append((1 - share, share))
        total: np.ndarray = sum(
            (
                math.prod((each[end] for each, end in zip(shares, corner, strict=True)), start=value)
                for corner, value in np.ndenumerate(self.values)
            ),
            start=np.zeros(()),
        )
        return total


def filled(size: np.ndarray | float, block: int) -> np.ndarray:
    """A size rounded up to whole blocks; unchanged for blocks of one channel."""
    if block == 1:
        return np.asarray(size, dtype=np.float64)
    return np.ceil(np.asarray(size, dtype=np.float64) / block - 1e-9) * block


def through(
    corners: Mapping[tuple[int, ...], float], places: Sequence[int], block: int = 1, least: float | None = None
) -> Surface:
    """The surface through the corners of a box.

    `corners` maps all of an operator's sizes to milliseconds; sizes other than at `places`, ascending, are the same in
    all.
    """
    sides = [sorted({dims[place] for dims in corners}) for place in places]
    values = np.array([corners[dims] for dims in sorted(corners)]).reshape([len(side) for side in sides])
    ends = [(float(filled(side[0], block)), float(filled(side[-1], block))) for side in sides]
    # Along the others there is one size, or both corners round to the same blocks.
    apart = [axis for axis, (a, b) in enumerate(ends) if a < b]
    values = values.min(axis=tuple({*range(len(sides))} - {*apart}))
    low, high = (tuple(ends[axis][which] for axis in apart) for which in (0, 1))
    return Surface(tuple(places[axis] for axis in apart), low, high, values, block, least)
