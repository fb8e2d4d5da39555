"""What is done with an existing plan: apply it to a model, verify the result, align it to widths fast on a device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from surgeon.allocation.fast_widths import round_up_to_fast_widths
from surgeon.device.profile import Profile
from surgeon.errors import InvalidArgument
from surgeon.frontend.trace import normalize_inputs
from surgeon.groups.analyze import analyze_inputs
from surgeon.groups.coupling import Groups
from surgeon.latency.model import Latency
from surgeon.plans.basis import require
from surgeon.plans.plan import Plan, attach
from surgeon.surgery.build import carry_out, hold_against
from surgeon.verification import Certificate


def apply(plan: Plan, model: nn.Module, example_inputs: Any = None, form: str = "auto") -> nn.Module:
    """See `Plan.apply`."""
    require(model, plan.settings.get("basis"))
    return build(plan, model, example_inputs, form)


def build(plan: Plan, model: nn.Module, example_inputs: Any = None, form: str = "auto") -> nn.Module:
    """As `apply`, but for weights in any basis, since other weights are loaded afterwards."""
    groups = _couple(plan, model, example_inputs)
    operation, _ = carry_out(model, groups, plan.keep(groups), form)
    attach(operation.module, plan)
    return operation.module


def verify(plan: Plan, model: nn.Module, slim: nn.Module, example_inputs: Any = None) -> Certificate:
    """See `Plan.verify`."""
    groups = _couple(plan, model, example_inputs)
    require(model, plan.settings.get("basis"))
    return hold_against(groups, plan.keep(groups), slim)


def align(plan: Plan, profile: Profile, model: nn.Module, example_inputs: Any = None) -> Plan:
    """See `Plan.align`."""
    if not isinstance(profile, Profile):
        kind = type(profile).__name__
        raise InvalidArgument(f"profile is a {kind}, not a surgeon.Profile; surgeon.Profile.load reads a file")
    groups = _couple(plan, model, example_inputs)
    latency = Latency.of(groups, profile, model=plan.fingerprint)
    aligned = Plan.of(groups, round_up_to_fast_widths(groups, plan.keep(groups), latency), model=model)
    return replace(aligned, settings=plan.settings)  # including the plan's basis, whatever the given model's is


def _couple(plan: Plan, model: nn.Module, example_inputs: Any) -> Groups:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model is a {type(model).__name__}, not a torch.nn.Module")
    plan.check(model)
    inputs = plan.example_inputs() if example_inputs is None else normalize_inputs(example_inputs)
    return analyze_inputs(model, inputs)
