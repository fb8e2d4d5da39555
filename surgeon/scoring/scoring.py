"""The scores of all groups by one criterion, checked."""

from __future__ import annotations

import numpy as np
import torch

from surgeon.errors import InvalidArgument
from surgeon.frontend.parameters import importance, public
from surgeon.groups.coupling import GROUPS, Groups
from surgeon.scoring.norms import shared
from surgeon.scoring.weight_criteria import CRITERIA, Criterion
from surgeon.support.arguments import call, meant, shown


@public(groups=GROUPS, criterion=importance)
def score(groups: Groups, criterion: str | Criterion = "magnitude", seed: int = 0) -> dict[int, np.ndarray]:
    """The worth of every unit, by the id of the group's leaf: `(units,)` in float64, none negative.

    `groups` are what `surgeon.inspect` returns. `criterion` is a name in `CRITERIA`, or a function like those in it.
    `seed` seeds the generator that it gets.

    >>> from surgeon.scoring.weight_criteria import _example
    >>> groups, group = _example()
    >>> score(groups, lambda groups, group, rng: [2, 1])[group.leaf.id].tolist()
    [2.0, 1.0]

    Raises:
        InvalidArgument: there is no criterion of this name, it does not return a number for each unit, or the seed is
            not an integer of at least 0.
    """
    name, function = _named(criterion)
    rng = np.random.default_rng(seed)
    found = {}
    with shared(groups):
        for group in groups:
            values = call("importance", function, groups, group, rng)
            found[group.leaf.id] = _checked(values, group.size, f"criterion {name}, group {group.name}")
    return found


def _named(criterion: str | Criterion) -> tuple[str, Criterion]:
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise InvalidArgument(
                f"importance={shown(criterion)} is not a criterion; choose one of {', '.join(CRITERIA)}, or pass a "
                f"function" + meant(criterion, CRITERIA)
            )
        return repr(criterion), CRITERIA[criterion]
    return getattr(criterion, "__name__", type(criterion).__name__), criterion


def _checked(values: object, size: int, place: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        given = type(values).__name__
        raise InvalidArgument(f"{place}: expected {size} numbers, one for each unit, not {given}") from error
    if scores.shape != (size,):
        raise InvalidArgument(f"{place}: expected scores of shape ({size},), one for each unit, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise InvalidArgument(f"{place}: the score of unit {int(np.argmin(np.isfinite(scores)))} is not finite")
    if (scores < 0).any():
        unit = int(np.argmax(scores < 0))
        raise InvalidArgument(f"{place}: the score of unit {unit} is negative ({scores[unit]:g}); the least is 0")
    return scores
