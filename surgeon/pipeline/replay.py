"""A plan that is at hand, carried out on a model, proved, or moved to widths that are fast on a device."""

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
    """What `Plan.apply` says."""
    require(model, plan.settings.get("basis"))
    return build(plan, model, example_inputs, form)


def build(plan: Plan, model: nn.Module, example_inputs: Any = None, form: str = "auto") -> nn.Module:
    """As `apply`, whatever basis the weights are in: for a model that other weights are put into."""
    groups = _couple(plan, model, example_inputs)
    operation, _ = carry_out(model, groups, plan.keep(groups), form)
    attach(operation.module, plan)
    return operation.module


def verify(plan: Plan, model: nn.Module, slim: nn.Module, example_inputs: Any = None) -> Certificate:
    """What `Plan.verify` says."""
    groups = _couple(plan, model, example_inputs)
    require(model, plan.settings.get("basis"))
    return hold_against(groups, plan.keep(groups), slim)


def align(plan: Plan, profile: Profile, model: nn.Module, example_inputs: Any = None) -> Plan:
    """What `Plan.align` says."""
    if not isinstance(profile, Profile):
        kind = type(profile).__name__
        raise InvalidArgument(f"profile is a {kind}, not a surgeon.Profile; surgeon.Profile.load reads a file")
    groups = _couple(plan, model, example_inputs)
    latency = Latency.of(groups, profile, model=plan.fingerprint)
    aligned = Plan.of(groups, round_up_to_fast_widths(groups, plan.keep(groups), latency), model=model)
    return replace(aligned, settings=plan.settings)  # the plan's basis, whichever the model at hand is in


def _couple(plan: Plan, model: nn.Module, example_inputs: Any) -> Groups:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model is a {type(model).__name__}, not a torch.nn.Module")
    plan.check(model)
    inputs = plan.example_inputs() if example_inputs is None else normalize_inputs(example_inputs)
    return analyze_inputs(model, inputs)
