"""Carries out a choice of units on a model, and proves the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from torch import fx, nn

from surgeon.errors import NotEquivalent
from surgeon.frontend.free_sizes import FreeSizes, free_sizes
from surgeon.frontend.isolation import untouched
from surgeon.frontend.trace import refuse_unfit, skeleton, trace_inputs
from surgeon.groups.coupling import Groups
from surgeon.rules import Kept
from surgeon.support.progress import stage
from surgeon.surgery import Operation, operate
from surgeon.surgery.configuration import reconfigure
from surgeon.surgery.meanings import Reading
from surgeon.surgery.rewrite import slim_graph
from surgeon.surgery.same import pair
from surgeon.verification import Certificate, certify
from surgeon.verification.differences import told_by_tensors
from surgeon.verification.second_size import certify_second

Keep = Mapping[int, Iterable[int]]


class Building:
    """Carries out choices of units on one model; the free sizes of its inputs are found out once."""

    def __init__(self, reading: Reading) -> None:
        self._reading, self._model, self._groups = reading, reading.model, reading.groups

    @cached_property
    def _sizes(self) -> FreeSizes:
        with stage("trace"):
            return free_sizes(self._model, self._groups.graph.inputs)

    def __call__(self, keep: Keep, form: str = "auto") -> tuple[Operation, Certificate]:
        """As `carry_out`."""
        with untouched(self._model):
            operation, certificate = _carry_out(self._reading, keep, form, self._sizes)
            if operation.form == "module":
                said = reconfigure(self._model, operation.module, self._groups, self._groups.kept(keep))
                operation = replace(operation, configuration=said)
        return operation, certificate


def carry_out(model: nn.Module, groups: Groups, keep: Keep, form: str = "auto") -> tuple[Operation, Certificate]:
    """The model with only the kept units, and the proof; a graph where the user's own class can't be proved.

    Raises:
        InvalidArgument: there is no such form.
        InvalidInputs: the model does not run on the inputs that it was traced with.
        SurgeryError: it can't be built.
        NotEquivalent: it is not the original less the removed units.
    """
    return Building(Reading(model, groups))(keep, form)


def _carry_out(
    reading: Reading, keep: Keep, form: str, sizes: FreeSizes
) -> tuple[Operation, Certificate]:
    model, groups = reading.model, reading.groups
    with stage("operate"):
        operation = operate(model, groups, keep, form, sizes=sizes, reading=reading)
    if operation.recorded:
        with suppress(NotEquivalent, RuntimeError), stage("verify"):
            return operation, _certified(model, operation)
        # Not all that an operator calls runs at another precision, or computes the same there: its own graph decides.
        with stage("operate"):
            operation = operate(model, groups, keep, form, retrace=True, sizes=sizes, reading=reading)
    with stage("verify"):
        try:
            return operation, _certified(model, operation)
        except RuntimeError as error:
            # Tracing knows shapes alone: only now that the operators run does an input of a wrong type show.
            refuse_unfit(skeleton(model).eval(), groups.graph.inputs, error)
            raise
        except NotEquivalent as error:
            if form != "auto" or operation.form != "module":
                raise
            # The user's code computes a number from sizes, as in x / x.numel(): a graph keeps the original's.
            reason = f"in its own class, {error}".partition(":")[0]
    with stage("operate"):
        operation = replace(operate(model, groups, keep, "graph", retrace=True, sizes=sizes), reason=reason)
    with stage("verify"):
        return operation, _certified(model, operation)


def _certified(model: nn.Module, operation: Operation) -> Certificate:
    """The proof at the sizes of the example inputs, and at others."""
    groups, kept, sizes = operation.rung.groups, operation.rung.kept, operation.rung.sizes
    certificate = certify(groups, kept, operation.traced, operation.pairs)
    second, whole = operation.second_size, certificate.end_to_end is not None
    if sizes is not None and (second is None or whole):
        second = certify_second(
            model, operation.module, groups, kept, sizes, whole=whole, symbolic=operation.rung.proved
        )
    return replace(certificate, second_size=second)


def hold_against(groups: Groups, keep: Keep, slim: nn.Module) -> Certificate:
    """Prove that `slim`, wherever it is from, is the traced model less the units that are not kept.

    Raises:
        NotEquivalent: it is not; the message names the first operator that differs, and what its tensors tell of it.
    """
    kept = groups.kept(keep)
    try:
        return _hold_against(groups, kept, slim)
    except NotEquivalent as error:
        raise NotEquivalent(f"{error}. {told_by_tensors(groups, kept, slim)}") from error


def _hold_against(groups: Groups, kept: Kept, slim: nn.Module) -> Certificate:
    with stage("verify"):
        traced = trace_inputs(slim, groups.graph.inputs)
        _, copies = slim_graph(groups, kept)
        pairs: str | dict[fx.Node, fx.Node] = pair(groups, traced, copies)
        if isinstance(pairs, str):
            raise NotEquivalent(f"{type(slim).__name__} is not the model less the removed units: {pairs}")
        return certify(groups, kept, traced, pairs)
