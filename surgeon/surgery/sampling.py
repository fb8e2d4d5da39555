"""Widths drawn at random, so that what is equal at them is hardly equal by chance."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from surgeon.groups.ties import Ties

#: At how many widths it is seen whether the code of a model does what the axes say.
SAMPLES = 3


def drawn(ties: Ties, seed: int, leaves: Iterable[int] | None = None) -> dict[int, int]:
    """Widths of all leaves, or of some, with these ties: with the seed 0 none is whole, with others half of them are.

    >>> widths = drawn(Ties(((0, 1),), frozenset({2}), {0: 96, 1: 32, 2: 3, 3: 10}), 0)
    >>> widths[0] == 3 * widths[1] < 96, widths[2], widths[3] < 10
    (True, 3, True)
    """
    rng = random.Random(seed)
    found: dict[int, int] = {}
    for leaf in ties.sizes if leaves is None else leaves:
        if leaf in found:
            continue
        members = ties.of(leaf)
        steps = ties.steps(members)
        whole = leaf in ties.held or (seed > 0 and rng.random() < 0.5)
        taken = steps if whole or steps == 1 else rng.randint(max(1, math.ceil(steps / 4)), steps - 1)
        found |= {each: ties.sizes[each] // steps * taken for each in members}
    return found
