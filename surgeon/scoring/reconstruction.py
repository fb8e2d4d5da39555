"""The criterion "reconstruction": units are judged by how well the others can compensate for them, on data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import fx, nn

from surgeon.calibration.data import Calibration
from surgeon.calibration.fisher import Sensitivity, measure, operations_on
from surgeon.calibration.labels import Loss
from surgeon.calibration.restated import judged_on
from surgeon.groups.coupling import Groups
from surgeon.plans.basis import basis_of
from surgeon.rules.base import size_of
from surgeon.scoring.labeled_gradients import likelihoods
from surgeon.scoring.optimal_brain_surgeon import FEWEST, Curve, eliminate, refine, work_of
from surgeon.support.progress import counter

#: The ridge on noise, times the layers that it went through.
NOISE_RIDGE = 0.1


@dataclass(frozen=True)
class Selection:
    """Scores and damages by reconstruction.

    `scores` are a number for each unit, by leaf; `damages` are the damage of keeping only the best 1, 2, … units of a
    leaf: `(units,)`, in nats of the output's likelihood per sample, 0 where all are kept.
    """

    scores: dict[int, np.ndarray] = field(repr=False)
    damages: dict[int, np.ndarray] = field(repr=False)
    samples: int


def reconstruction(
    model: nn.Module, groups: Groups, calibration: Calibration, *, seed: int = 0, loss: Loss | None = None
) -> Selection:
    """Judge every unit by the damage of its removal after the units that are left were fitted to compensate for it.

    Args:
        calibration: inputs, with their labels where there is a `loss`.
        seed: seeds the labels that are drawn from the model's own outputs.
        loss: replaces these by the loss of the data's labels.

    >>> import torch
    >>> from surgeon.calibration.data import calibrate
    >>> from surgeon.groups.coupling import couple
    >>> from surgeon.frontend.trace import trace
    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> with torch.no_grad():
    ...     _ = net[2].weight[:, 1].zero_()
    >>> groups = couple(trace(net, torch.zeros(2, 8)))
    >>> found = reconstruction(net, groups, calibrate(torch.randn(64, 8), groups.graph, net))
    >>> int(found.scores[groups.groups[0].leaf.id].argmin())
    1
    """
    labeled = likelihoods(model, calibration, loss) if loss is not None else None
    groups = judged_on(groups, calibration)
    sensitivity = measure(groups, calibration, seed, labeled)
    basis = basis_of(model)
    ranked = basis.ranked if basis is not None else ()
    work = [work_of(group, sensitivity) for group in groups]
    curves: dict[int, Curve] = {}
    ridges = _ridges(sensitivity, groups) if calibration.restated else {}
    with counter("selection") as progress:
        for done, group in enumerate(groups):
            progress(sum(work[:done]), sum(work))
            curves[group.leaf.id] = eliminate(group, sensitivity, ridges, group.name in ranked)
    fewest = 1 if calibration.noise else FEWEST
    curves = refine(groups, curves, sensitivity, calibration.batches, seed, operations_on(calibration), fewest)
    return Selection(
        {leaf: curve.scores for leaf, curve in curves.items()},
        {leaf: curve.by_width for leaf, curve in curves.items()},
        calibration.samples,
    )


def _ridges(sensitivity: Sensitivity, groups: Groups) -> dict[fx.Node, float]:
    """The ridge of each layer on noise, where batch norms have its statistics.

    Each unit has the mean and the variance that it has on real data there, but how units covary is the noise's, and
    that less and less like what it is on real data from one layer to the next. What the others make up for is believed
    accordingly.
    """
    depth: dict[fx.Node, int] = {}
    for node in groups.graph.nodes:
        weighted = any(each.op == "get_attr" and len(size_of(each)) > 1 for each in node.all_input_nodes)
        depth[node] = max((depth[each] for each in node.all_input_nodes), default=0) + weighted
    return {reader.layer.node: NOISE_RIDGE * depth[reader.layer.node] for reader in sensitivity.readers}
