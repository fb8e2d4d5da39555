"""Decisions that unlabeled data guide: which units are rebuilt best from the others, and where it hurts least."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from surgeon.calibration.data import Calibration
from surgeon.frontend.ignore import Ignored, ignoring
from surgeon.frontend.trace import trace_inputs, with_train_only
from surgeon.groups.coupling import Groups, couple
from surgeon.plans.basis import basis_of
from surgeon.projection.project import project_groups
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
