"""Decisions that unlabeled data guide: which units are rebuilt best from the others, and where it hurts least."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from surgeon.allocation.allocate import allocate
from surgeon.allocation.limits import Keep
from surgeon.allocation.optimal import aligned_by_damage
from surgeon.calibration.data import Calibration
from surgeon.cost.cost import Cost
from surgeon.frontend.ignore import Ignored, ignoring
from surgeon.frontend.trace import trace_inputs, with_train_only
from surgeon.groups.coupling import Groups, couple
from surgeon.plans.basis import basis_of
from surgeon.projection.project import project_groups
from surgeon.scoring.reconstruction import Selection
from surgeon.support.progress import stage

RECONSTRUCTION = "reconstruction"
"""The criterion that needs data; the default where there are some."""


def rotated(
    model: nn.Module, groups: Groups, data: Calibration, ignore: Ignored | Iterable[Ignored]
) -> tuple[nn.Module, Groups]:
    """The model in the basis in which least is lost by a cut, and its groups; both as they are if it is in one."""
    if basis_of(model) is not None:
        return model, groups
    with stage("project"):
        turned = project_groups(model, groups, data)
    if turned is model:
        return model, groups
    with stage("trace"):
        graph = with_train_only(trace_inputs(turned, groups.graph.inputs), turned)
    return turned, couple(graph, ignoring(model, ignore))


def widths_for(
    groups: Groups, cost: Cost, found: Selection, *, ratio: float, budget: str, scope: str, align: int | None,
    keep: Keep,
) -> dict[int, int]:
    """The widths that do the least damage, at widths that are fast; within 2 % of the budget.

    Raises:
        Infeasible: the budget can't be met.
    """
    if budget == "channels" or scope != "global" or ratio == 0:
        return allocate(groups, found.scores, cost, budget=budget, ratio=ratio, scope=scope, align=align, keep=keep)
    widths, _ = aligned_by_damage(
        groups, found.damages, cost, budget=budget, ratio=ratio, align=align, keep=keep
    )
    return widths
