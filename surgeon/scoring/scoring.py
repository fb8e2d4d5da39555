"""Every group's scores by one criterion, checked; and weights checked before anything is decided on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from surgeon.errors import InvalidArgument, InvalidModel
from surgeon.frontend.trace import Graph
from surgeon.groups.coupling import Groups
from surgeon.scoring.norms import shared
from surgeon.scoring.weight_criteria import CRITERIA, Criterion


def score(groups: Groups, criterion: str | Criterion = "magnitude", seed: int = 0) -> dict[int, np.ndarray]:
    """The worth of every unit, by the id of the group's leaf: `(units,)` in float64, none negative.

    `criterion` is a name of `CRITERIA` or a function like those in it. `seed` seeds the generator it is given.

    >>> from surgeon.scoring.weight_criteria import _example
    >>> groups, group = _example()
    >>> score(groups, lambda groups, group, rng: [2, 1])[group.leaf.id].tolist()
    [2.0, 1.0]

    Raises:
        InvalidArgument: no criterion of this name, or it gave something other than a number a unit; or a seed that
            is no integer of at least 0.
    """
    name, function = _named(criterion)
    _check_seed(seed)
    rng = np.random.default_rng(seed)
    with shared(groups):
        return {
            group.leaf.id: _checked(function(groups, group, rng), group.size, f"criterion {name}, group {group.name}")
            for group in groups
        }


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidArgument(f"seed={seed!r}: give an integer of at least 0")


def _named(criterion: str | Criterion) -> tuple[str, Criterion]:
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise InvalidArgument(
                f"importance={criterion!r} is no criterion; choose one of {', '.join(CRITERIA)}, or pass a function"
            )
        return repr(criterion), CRITERIA[criterion]
    if not callable(criterion):
        raise InvalidArgument(f"importance is a {type(criterion).__name__}; give a criterion's name or a function")
    return getattr(criterion, "__name__", type(criterion).__name__), criterion


def _checked(values: object, size: int, place: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{place}: expected {size} numbers, one a unit, not {type(values).__name__}") from error
    if scores.shape != (size,):
        raise InvalidArgument(f"{place}: expected scores of shape ({size},), one a unit, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise InvalidArgument(f"{place}: the score of unit {int(np.argmin(np.isfinite(scores)))} is not finite")
    if (scores < 0).any():
        unit = int(np.argmax(scores < 0))
        raise InvalidArgument(f"{place}: the score of unit {unit} is negative ({scores[unit]:g}); least is 0")
    return scores


def check_finite(graph: Graph) -> None:
    """Refuse weights that no score can be taken of.

    A buffer may hold infinity, as the masks of attention do, but not NaN.

    >>> from surgeon.frontend.trace import trace
    >>> net = nn.Linear(2, 2)
    >>> check_finite(trace(net, torch.zeros(2, 2)))

    Raises:
        InvalidModel: a parameter holds NaN or infinity, or a buffer or constant NaN; the message names the tensor.
    """
    for name, value in graph.values.items():
        tensor = value.detach()
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if torch.isfinite(tensor.sum()):  # one pass without a copy; a sum hides neither NaN nor infinity
            continue
        learnt = isinstance(value, nn.Parameter)
        wrong = ~torch.isfinite(tensor) if learnt else torch.isnan(tensor)
        count = int(wrong.sum())
        if count:
            raise InvalidModel(
                f"{name} {tuple(tensor.shape)} holds NaN{' or infinity' if learnt else ''} in {count} of "
                f"{tensor.numel()} places; load the weights again, or train with a smaller rate, before pruning"
            )
