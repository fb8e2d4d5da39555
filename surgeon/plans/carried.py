"""The plan that a smaller model carries, of everything that was removed from the model that it comes from."""

from __future__ import annotations

from dataclasses import replace

from torch import fx, nn

from surgeon.frontend.notes import FILE, note, noted
from surgeon.frontend.recipes import Recipe, Trace, trace_of
from surgeon.plans.ancestors import descend
from surgeon.plans.basis import mark
from surgeon.plans.plan import Plan, steps, together

#: The attribute of a smaller model that holds its plan.
ATTRIBUTE = "surgeon_plan"
#: The attribute of a smaller model that tells how the first one was made.
MAKER = "surgeon_maker"
#: The entry in the settings of a step that says in which form its result was made.
FORM = "form"


def attach(slim: nn.Module, plan: Plan, model: nn.Module) -> None:
    """Attach to a smaller model the plan by which it was made of `model`, after the one that `model` carries.

    It also learns how the first model was made, as far as that can be told.
    """
    mark(slim, None)
    descend(slim, model, plan)
    note(slim, MAKER, maker(model) or trace_of(model))
    if (file := noted(model, FILE)) is not None:
        note(slim, FILE, file)
    carried = attached(model)
    whole = plan if carried is None else _followed(carried, form_of(model), plan)
    note(slim, ATTRIBUTE, whole)


def attached(module: nn.Module) -> Plan | None:
    found: Plan | None = noted(module, ATTRIBUTE)
    return found


def maker(module: nn.Module) -> Recipe | Trace | None:
    """How the model was made from which a smaller one comes, or what is to be seen of it."""
    found: Recipe | Trace | None = noted(module, MAKER)
    return found


def plan_of(module: nn.Module, given: Plan | None) -> Plan | None:
    """The given plan, or else the one attached to the module, if any."""
    return given if given is not None else attached(module)


def form_of(module: nn.Module) -> str:
    return "graph" if isinstance(module, fx.GraphModule) else "module"


def left(plan: Plan, model: nn.Module) -> tuple[Plan, ...]:
    """The steps that are still to be taken with a model: one that carries the first ones is their result."""
    carried, wanted = attached(model), steps(plan)
    taken = steps(carried) if carried is not None else ()
    same = len(taken) < len(wanted) and all(
        (a.fingerprint, a.cuts) == (b.fingerprint, b.cuts) for a, b in zip(taken, wanted, strict=False)
    )
    return wanted[len(taken) :] if same else wanted


def _followed(first: Plan, form: str, second: Plan) -> Plan:
    """The plan of both; a step that removes nothing is none. `form` is that of the result of the first."""
    if not (first.cuts and second.cuts):
        return second if second.cuts else first
    *earlier, last = steps(first)
    return together([*earlier, replace(last, settings={**last.settings, FORM: form}), *steps(second)])
