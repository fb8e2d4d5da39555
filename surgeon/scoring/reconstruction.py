"""Which units are best rebuilt from the others, and what it does to the model to keep few, from unlabeled data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from surgeon.calibration.data import Calibration
from surgeon.calibration.fisher import measure
from surgeon.calibration.labels import Loss
from surgeon.groups.coupling import Groups
from surgeon.plans.basis import basis_of
from surgeon.scoring.labeled_gradients import likelihoods
from surgeon.scoring.optimal_brain_surgeon import Curve, eliminate, refine
from surgeon.support.progress import stage


@dataclass(frozen=True)
class Selection:
    """Scores and damages by reconstruction.

    `scores` are a number a unit by leaf, as those of `surgeon.importance`; `damages` what keeping only the best
    1, 2, … units of a leaf does to the model: `(units,)`, in nats of its output's likelihood a sample, 0 where all
    stay.
    """

    scores: dict[int, np.ndarray] = field(repr=False)
    damages: dict[int, np.ndarray] = field(repr=False)
    samples: int

    def choose(self, widths: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
        """The units of each leaf that stay at these widths, for leaves that get narrower."""
        return {
            leaf: tuple(sorted(np.argsort(-scores, kind="stable")[: widths[leaf]].tolist()))
            for leaf, scores in self.scores.items()
            if widths.get(leaf, len(scores)) < len(scores)
        }


def reconstruction(
    model: nn.Module, groups: Groups, calibration: Calibration, *, ridge: float = 1e-2, seed: int = 0,
    loss: Loss | None = None,
) -> Selection:
    """Judge every unit by what its loss does after the units that are left were fitted to make up for it.

    Args:
        model: the model that `groups` are of.
        groups: the coupled units.
        calibration: inputs, with their labels where there is a `loss`.
        ridge: as for `recover`.
        seed: seeds the labels that are drawn from the model's own outputs.
        loss: instead of these, the loss of their labels.

    >>> import torch
    >>> from surgeon.calibration.data import calibrate
    >>> from surgeon.groups.coupling import couple
    >>> from surgeon.frontend.trace import trace
    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> with torch.no_grad():
    ...     _ = net[2].weight[:, 1].zero_()
    >>> groups = couple(trace(net, torch.zeros(2, 8)))
    >>> found = reconstruction(net, groups, calibrate(torch.randn(64, 8), groups.graph, net))
    >>> found.choose({groups.groups[0].leaf.id: 3}) == {groups.groups[0].leaf.id: (0, 2, 3)}
    True
    """
    labeled = likelihoods(model, calibration, loss) if loss is not None else None
    sensitivity = measure(groups, calibration.batches, seed, labeled)
    basis = basis_of(model)
    ranked = basis.ranked if basis is not None else ()
    curves: dict[int, Curve] = {}
    with stage("selection"):
        for group in groups:
            curves[group.leaf.id] = eliminate(group, sensitivity, ridge, group.name in ranked)
    curves = refine(groups, curves, sensitivity, calibration.batches, seed)
    return Selection(
        {leaf: curve.scores for leaf, curve in curves.items()},
        {leaf: curve.by_width for leaf, curve in curves.items()},
        calibration.samples,
    )
