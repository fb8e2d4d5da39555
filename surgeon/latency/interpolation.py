"""What an operator takes at any sizes, from what it takes at a few."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Surface:
    """Milliseconds over the sizes in `places`, linear in each of them, through the values at the corners.

    `low` and `high` are the corners' sizes there, `values` has one axis of two a place. With `block`, sizes are filled
    up to whole blocks first: those are what is computed.
    """

    places: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    values: np.ndarray
    block: int = 1

    def at(self, dims: Sequence[np.ndarray | float]) -> np.ndarray:
        """The milliseconds at sizes that broadcast; below the corners never less than a quarter of the least corner.

        >>> corners = {(16, 16): 1.0, (16, 64): 4.0, (64, 16): 4.0, (64, 64): 16.0}
        >>> surface = through(corners, (0, 1), block=16)
        >>> float(surface.at((32, 32))), float(surface.at((17, 32)))
        (4.0, 4.0)
        """
        total: np.ndarray = np.zeros(())
        shares = []
        for place, a, b in zip(self.places, self.low, self.high, strict=True):
            size = np.asarray(dims[place], dtype=np.float64)
            share = (filled(size, self.block) - a) / (b - a)
            shares.append((1 - share, share))
        for corner in itertools.product((0, 1), repeat=len(self.places)):
            part: np.ndarray = np.asarray(self.values[corner])
            for each, which in zip(shares, corner, strict=True):
                part = part * each[which]
            total = total + part
        return np.maximum(total, self.values.min() / 4)


def filled(size: np.ndarray | float, block: int) -> np.ndarray:
    """A size in whole blocks; with blocks of one channel as it is."""
    if block == 1:
        return np.asarray(size, dtype=np.float64)
    return np.ceil(np.asarray(size, dtype=np.float64) / block - 1e-9) * block


def through(corners: Mapping[tuple[int, ...], float], places: Sequence[int], block: int = 1) -> Surface:
    """The surface through the corners of a box.

    `corners` gives the milliseconds by all of an operator's sizes, of which those outside `places` are the same in all.
    """
    sides = [sorted({dims[place] for dims in corners}) for place in places]
    used = [(place, side[0], side[-1]) for place, side in zip(places, sides, strict=True) if side[0] < side[-1]]
    fixed = next(iter(corners))
    values = np.zeros((2,) * len(used))
    for which in itertools.product((0, 1), repeat=len(used)):
        dims = list(fixed)
        for place, side in zip(places, sides, strict=True):
            dims[place] = side[0]
        for (place, a, b), end in zip(used, which, strict=True):
            dims[place] = (a, b)[end]
        values[which] = corners[tuple(dims)]
    low = tuple(float(filled(a, block)) for _, a, _ in used)
    high = tuple(float(filled(b, block)) for _, _, b in used)
    apart = [index for index in range(len(used)) if low[index] < high[index]]
    for index in reversed(range(len(used))):
        if index not in apart:  # both corners fill the same blocks
            values = values.min(axis=index)
    return Surface(
        tuple(used[i][0] for i in apart), tuple(low[i] for i in apart), tuple(high[i] for i in apart), values, block
    )
