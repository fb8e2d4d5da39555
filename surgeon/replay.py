"""Carries out a choice of units on a model, and proves the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx, nn

from surgeon.coupling import Groups
from surgeon.errors import NotEquivalent
from surgeon.progress import stage
from surgeon.surgery import Operation, operate
from surgeon.surgery.rewrite import slim_graph
from surgeon.surgery.same import pair
from surgeon.trace import refuse_unfit, skeleton, trace_inputs
from surgeon.verify import Certificate, certify

Keep = Mapping[int, Iterable[int]]


def carry_out(model: nn.Module, groups: Groups, keep: Keep, form: str = "auto") -> tuple[Operation, Certificate]:
    """The model with only the kept units, and the proof.

    Raises:
        InvalidArgument: there is no such form.
        InvalidInputs: the model does not run on the inputs that it was traced with.
        SurgeryError: it can't be built.
        NotEquivalent: it is not the original less the removed units.
    """
    with stage("operate"):
        operation = operate(model, groups, keep, form)
    with stage("verify"):
        try:
            certificate = certify(groups, groups.kept(keep), operation.traced, operation.pairs)
        except RuntimeError as error:
            # Tracing knows shapes alone: only now that the operators run does an input of a wrong type show.
            refuse_unfit(skeleton(model).eval(), groups.graph.inputs, error)
            raise
    return operation, certificate


def hold_against(groups: Groups, keep: Keep, slim: nn.Module) -> Certificate:
    """Prove that `slim`, wherever it is from, is the traced model less the units that are not kept.

    Raises:
        NotEquivalent: it is not; the message names the first operator that differs.
    """
    kept = groups.kept(keep)
    with stage("verify"):
        traced = trace_inputs(slim, groups.graph.inputs)
        _, copies = slim_graph(groups, kept)
        pairs: str | dict[fx.Node, fx.Node] = pair(groups, traced, copies)
        if isinstance(pairs, str):
            raise NotEquivalent(f"{type(slim).__name__} is not the model less the removed units: {pairs}")
        return certify(groups, kept, traced, pairs)
