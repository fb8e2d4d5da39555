"""Importance criteria by required input: weights, activations, or gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from surgeon.calibration.data import Calibration
from surgeon.calibration.labels import Loss
from surgeon.calibration.restated import judged_on
from surgeon.errors import InvalidArgument
from surgeon.frontend.parameters import MADE, SYNTHETIC
from surgeon.groups.coupling import Groups
from surgeon.scoring import CRITERIA, GRADIENT_CRITERIA, Criterion, score
from surgeon.scoring.activation_criteria import ACTIVATION_CRITERIA
from surgeon.scoring.activation_criteria import scores as activation_scores
from surgeon.scoring.labeled_gradients import observe
from surgeon.support.arguments import meant, shown

RECONSTRUCTION = "reconstruction"
"""The name of the criterion that is the default if there are data."""


def settle(importance: str | Criterion | None, data: Any, loss: Any) -> str | Criterion:
    """The criterion to use: `importance`, or the default for the given data.

    >>> settle(None, None, None), settle(None, [], None), settle("l1", None, None)
    ('magnitude', 'reconstruction', 'l1')

    Raises:
        InvalidArgument: there is no such criterion, it needs data or a loss that are missing, or it takes no loss.
    """
    if loss is not None and (data is None or (isinstance(data, str) and data in MADE)):
        raise InvalidArgument("loss= needs labeled data: pass batches such as (inputs, labels) as data=")
    if importance is None:
        return "magnitude" if data is None else RECONSTRUCTION
    if not isinstance(importance, str):
        return importance
    known = (*CRITERIA, RECONSTRUCTION, *ACTIVATION_CRITERIA, *GRADIENT_CRITERIA)
    if importance not in known:
        raise InvalidArgument(
            f"importance={shown(importance)} is not a criterion; choose one of {', '.join(known)}, or pass a function"
            + meant(importance, known)
        )
    if importance in GRADIENT_CRITERIA and loss is None:
        raise InvalidArgument(
            f"importance={importance!r} is based on gradients: pass batches such as (inputs, labels) as data=, and a "
            "function of the model's output and the labels as loss="
        )
    if importance in (RECONSTRUCTION, *ACTIVATION_CRITERIA) and data is None:
        raise InvalidArgument(
            f'importance={importance!r} needs data: pass unlabeled inputs as data=, or data="{SYNTHETIC}"'
        )
    if loss is not None and importance not in (RECONSTRUCTION, *GRADIENT_CRITERIA):
        raise InvalidArgument(f"importance={importance!r} takes no loss; leave loss= out, or choose 'taylor'")
    return importance


def score_groups(
    model: nn.Module, groups: Groups, importance: str | Criterion, data: Calibration | None, loss: Loss | None,
    seed: int,
) -> dict[int, np.ndarray]:
    """The worth of every unit, by the id of the group's leaf, by a criterion that `settle` returned.

    Raises:
        InvalidArgument, InvalidInputs: the loss does not fit the data, or a function does not score each unit.
    """
    if importance in GRADIENT_CRITERIA and data is not None and loss is not None:
        return observe(model, groups, data, loss).scores(str(importance))
    if importance in ACTIVATION_CRITERIA and data is not None:
        return activation_scores(judged_on(groups, data), data.batches, str(importance))
    return score(groups, importance, seed)
