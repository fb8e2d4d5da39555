"""Pruning around what can't be traced: parts of a model that can be are cut as a model of their own, and put back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidInputs, PlanError, SurgeryError, TraceError, first_line
from surgeon.frontend.copies import duplicate
from surgeon.frontend.ignore import Ignored, ignoring
from surgeon.frontend.infer_inputs import infer
from surgeon.frontend.isolation import quietly, untouched
from surgeon.frontend.parts import Parts, parts_at, put_back, traceable_parts
from surgeon.frontend.trace import Inputs, normalize_inputs
from surgeon.groups.analyze import analyze, analyze_inputs
from surgeon.groups.coupling import Groups
from surgeon.plans.plan import Plan
from surgeon.support.progress import stage

#: The entry in a plan's settings that lists the parts that it is of, once for each call.
PARTS = "parts"


def analyzed(
    model: nn.Module, example_inputs: Any, ignore: Ignored | Iterable[Ignored] = (), alone: str = ""
) -> tuple[nn.Module, Groups]:
    """The model and its groups; where it can't be traced, its `Parts` and theirs.

    `alone` says why parts alone do not do.

    Raises:
        TraceError: neither can be traced, or parts alone do not do; the message names them.
    """
    try:
        return model, analyze(model, example_inputs, ignore)
    except TraceError as error:
        left_alone = ignoring(model, ignore)
        with stage("trace"):
            found = traceable_parts(model, _inputs(model, example_inputs), first_line(error))
        if found is None:
            raise
        parts, calls = found
        if alone:
            names = ", ".join(f"model.{path}" for path in dict.fromkeys(parts.called))
            raise TraceError(
                f"{first_line(error)}\nIt can be pruned around what can't be traced, but {alone}.\nRemedy: leave that "
                f"out, or shrink a part by itself, on what it is called with, and put the result in its place: {names}."
            ) from error
        return parts, analyze_inputs(parts, calls, left_alone)


def parts_of(model: nn.Module, plan: Plan, example_inputs: Any) -> tuple[nn.Module, Inputs]:
    """What a plan is of, the model or parts of it, and the inputs to trace it with.

    Raises:
        PlanError: the model has no such parts.
    """
    given = None if example_inputs is None else normalize_inputs(example_inputs)
    if PARTS not in plan.settings:
        return model, plan.example_inputs() if given is None else given
    called, known = plan.settings[PARTS], {name for name, _ in model.named_modules(remove_duplicate=False) if name}
    named = isinstance(called, list) and all(isinstance(path, str) for path in called)
    if not named or not called or not known.issuperset(called):
        raise PlanError(f"settings: {PARTS} are {str(called)[:80]}, which are no submodules of this model")
    if given is None:
        return Parts(model, called), plan.example_inputs()
    found = parts_at(model, called, given)
    if found is None:
        raise InvalidInputs(f"forward calls none of the plan's parts, such as {called[0]}, on example_inputs")
    return found


def whole(model: nn.Module, slim: nn.Module, of: nn.Module) -> nn.Module:
    """`slim`, which was made of `of`; where that is the parts of `model`, a copy of it with these in their places."""
    if not isinstance(of, Parts):
        return slim
    if not isinstance(slim, Parts):
        raise SurgeryError(f"of {type(model).__name__}, only parts can be traced, which stay of their own classes")
    return put_back(model, slim, of.called)


def check_runs(model: nn.Module, parts: Iterable[str], example_inputs: Any) -> None:
    """Make sure that a model runs with smaller parts.

    Raises:
        SurgeryError: it does not.
    """
    inputs = _inputs(model, example_inputs)
    args, kwargs = pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), inputs)
    try:
        with torch.no_grad(), untouched(model), quietly():
            duplicate(model).eval()(*args, **kwargs)
    except Exception as error:
        raise SurgeryError(
            f"the rest of {type(model).__name__} does not run with the smaller parts: {first_line(error)}\n"
            f"Remedy: leave alone, with ignore=, what it reads of {', '.join(dict.fromkeys(parts))}."
        ) from error


def _inputs(model: nn.Module, example_inputs: Any) -> Inputs:
    return infer(model) if example_inputs is None else normalize_inputs(example_inputs)
