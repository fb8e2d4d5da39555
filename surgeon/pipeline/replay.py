"""What is done with an existing plan: apply it to a model, verify the result, align it to widths fast on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from surgeon.allocation.fast_widths import round_up_to_fast_widths
from surgeon.device.profile import Profile
from surgeon.errors import InvalidArgument
from surgeon.frontend.parts import Parts
from surgeon.frontend.wrappers import bare, within_its_wrapper
from surgeon.groups.analyze import analyze_inputs
from surgeon.groups.coupling import Groups
from surgeon.latency.model import Latency
from surgeon.pipeline.around import parts_of, whole
from surgeon.plans.basis import require
from surgeon.plans.carried import FORM, attach, left
from surgeon.plans.plan import Plan
from surgeon.surgery.build import carry_out, hold_against
from surgeon.verification import Certificate


@within_its_wrapper()
def apply(plan: Plan, model: nn.Module, example_inputs: Any = None, form: str = "auto") -> nn.Module:
    """See `Plan.apply`."""
    return _carried_out(left(plan, _checked(model)), model, example_inputs, form, True)


def build(plan: Plan, model: nn.Module, form: str = "auto") -> nn.Module:
    """As `apply`, but for weights in any basis, since other weights are loaded afterwards."""
    return _carried_out(left(plan, _checked(model)), model, None, form, False)


def _carried_out(steps: Sequence[Plan], model: nn.Module, example_inputs: Any, form: str, in_basis: bool) -> nn.Module:
    """The result of several steps. Each but the last one is in the form that it had when they were first taken."""
    for place, step in enumerate(steps, 1):
        of, groups = _couple(step, model, example_inputs if place == 1 else None)
        if in_basis:
            require(model, step.settings.get("basis"))
        wanted = form if place == len(steps) else str(step.settings.get(FORM, "auto"))
        operation, _ = carry_out(of, groups, step.keep(groups), wanted)
        made = whole(model, operation.module, of)
        attach(made, step, model)
        model = made
    return model


def verify(plan: Plan, model: nn.Module, slim: nn.Module, example_inputs: Any = None) -> Certificate:
    """See `Plan.verify`."""
    *earlier, last = left(plan, _checked(bare(model)))
    model = _carried_out(earlier, bare(model), example_inputs, "auto", True)
    of, groups = _couple(last, model, None if earlier else example_inputs)
    require(model, last.settings.get("basis"))
    smaller = bare(slim)
    return hold_against(groups, last.keep(groups), Parts(smaller, of.called) if isinstance(of, Parts) else smaller)


def align(plan: Plan, profile: Profile, model: nn.Module, example_inputs: Any = None) -> Plan:
    """See `Plan.align`."""
    if not isinstance(profile, Profile):
        kind = type(profile).__name__
        raise InvalidArgument(f"profile is a {kind}, not a surgeon.Profile; surgeon.Profile.load reads a file")
    model = bare(_checked(model))
    _, groups = _couple(plan, model, example_inputs)
    latency = Latency.of(groups, profile, model=plan.fingerprint)
    aligned = Plan.of(groups, round_up_to_fast_widths(groups, plan.keep(groups), latency), model=model)
    return replace(aligned, settings=plan.settings)  # including the plan's basis, whatever the given model's is


def _checked(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model is a {type(model).__name__}, not a torch.nn.Module")
    return model


def _couple(plan: Plan, model: nn.Module, example_inputs: Any) -> tuple[nn.Module, Groups]:
    """What the plan is of, the model or parts of it, and its groups."""
    plan.check(model)
    of, inputs = parts_of(model, plan, example_inputs)
    return of, analyze_inputs(of, inputs)
