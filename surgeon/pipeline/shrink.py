"""The pipeline on one page: trace, couple, score, allocate, plan, operate, verify."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Unpack

from torch import nn

from surgeon.calibration.job import JobReport
from surgeon.frontend.free_sizes import free_sizes
from surgeon.frontend.ignore import Ignored
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import public
from surgeon.frontend.parts import Parts
from surgeon.frontend.wrappers import within_its_wrapper
from surgeon.groups.coupling import Groups
from surgeon.pipeline.around import analyzed, check_runs, whole
from surgeon.pipeline.decision import Form, Result, carried_out, prepare
from surgeon.pipeline.kept_target import goal, smallest
from surgeon.pipeline.options import BY_CONCERN, Data, Job, Options, Repair, Select, Target
from surgeon.pipeline.signatures import Planning, Shrinking, flat
from surgeon.plans.basis import basis_of
from surgeon.plans.carried import attach
from surgeon.plans.plan import PLAN, Plan
from surgeon.reporting.report import Change, Report
from surgeon.support.memory import using_memory
from surgeon.support.progress import collect
from surgeon.verification import Certificate


@within_its_wrapper()
@public(**BY_CONCERN)
@undisturbed()
@flat(Target, Data, Select, Repair, Job)
def shrink(
    model: nn.Module,
    ratio: float | None = None,
    *,
    example_inputs: Any = None,
    form: Form = "auto",
    return_report: bool = False,
    **options: Unpack[Shrinking],
) -> Any:
    """A physically smaller copy of `model`, proved to be the original less the removed units, and then fitted.

    Units are chosen, and the remaining layers fitted to make up for the others, on `data`; without any, on a little
    noise. `compensate=False` leaves the plain cut.

    Args:
        model: any module that `torch.export` can trace; it is left as it is. What it holds that can't be copied, such
            as a lock or an open file, the result shares with it. Of one that can't be traced, the largest parts that
            can are cut, each with what enters and leaves it as it was; a ratio is then one of these parts.
        options: those of `surgeon.pipeline.options`, each by its name.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; inferred where that is
            safe.
        form: "module" or "graph" insists on the user's own class, or on a `torch.fx.GraphModule`. By default it is the
            class where that is provably right. Where its code derives one width from another, as `chunk(2)` and
            `C // num_heads` do, those groups keep the same share of their units, or all of them, if the budget can
            still be met and the plan does no more than three times the damage; the report says what that cost.
        return_report: return `(slim, report)`.

    Returns:
        The smaller module, or `(module, Report)`.

    Raises:
        InvalidArgument, InvalidInputs, InvalidModel: bad input.
        TraceError: `torch.export` can't trace the model, and no part of it, or what is asked for needs the whole.
        NothingToPrune, Infeasible: the budget can't be met; the message names the nearest ratio that can.
        SurgeryError: the form is "module", and the class can't hold such a plan; the message says why.
        NotEquivalent: the result is not the original less the removed units; please report the network.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(1024, 10))
    >>> slim = shrink(net, 0.5, example_inputs=torch.randn(1, 3, 8, 8))
    >>> slim[0].out_channels < 64, type(slim).__name__
    (True, 'Sequential')
    """
    asked = Options.of(ratio=ratio, **options)
    with collect() as seconds, using_memory(asked.data.memory):
        prepared = prepare(model, asked, example_inputs, form)
        aim = goal(prepared)
        result = carried_out(asked, prepared.decide()) if aim is None else smallest(prepared, aim)
        made, operation = result.made, result.operation
        if isinstance(made.model, Parts):
            operation = replace(operation, module=whole(model, operation.module, made.model))
            check_runs(operation.module, made.model.called, example_inputs)
        attach(operation.module, made.plan(), model)
        job = prepared.judge(operation.module)
    if not return_report:
        return operation.module
    return operation.module, _report(model, replace(result, operation=operation), seconds, job)


@public(**BY_CONCERN)
@undisturbed()
@flat(Target, Data, Select)
def plan(
    model: nn.Module, ratio: float | None = None, *, example_inputs: Any = None, **options: Unpack[Planning]
) -> Plan:
    """What `shrink` would remove, without touching a weight.

    It is the plan of the default form: for a class that derives widths from one another, these are tied as by `shrink`.
    It is a plan of the units of this model: `shrink` rotates the model first, by default, where something in it can be
    rotated. To plan in that basis, give this function what `surgeon.project` returns. To plan by the weights alone,
    ask for `importance="magnitude"`.

    Args:
        model: as for `shrink`; it is left as it is.
        options: those of `surgeon.pipeline.options`, each by its name.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; inferred where that is
            safe.

    Raises:
        InvalidArgument, InvalidInputs, InvalidModel: bad input.
        TraceError: `torch.export` can't trace the model, and no part of it.
        NothingToPrune, Infeasible: the budget can't be met; the message names the nearest ratio that can.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> made = plan(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> [(cut.tensor, cut.axis, len(cut.keep)) for cut in made.cuts]
    [('0.weight', 0, 16), ('0.bias', 0, 16), ('2.weight', 1, 16)]
    """
    asked = Options.of(ratio=ratio, project=False, **options)
    with using_memory(asked.data.memory):
        return prepare(model, asked, example_inputs).decide().plan()


@public()
@undisturbed()
def inspect(model: nn.Module, example_inputs: Any = None, ignore: Ignored | Iterable[Ignored] = ()) -> Groups:
    """The coupled groups of a model, every pinned axis with the reason, and which sizes of the inputs are free.

    It prints as text, and as a table in a notebook.

    Args:
        model: as for `shrink`; it is left as it is.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; inferred where that is
            safe.
        ignore: module names, globs, modules or parameters to leave alone, which are pinned.

    Raises:
        InvalidArgument, InvalidInputs, InvalidModel: bad input.
        TraceError: `torch.export` can't trace the model, and no part of it.

    >>> import torch
    >>> groups = inspect(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(1, 8))
    >>> print(groups)
    group 0: 32 units
      0.weight axis 0  [0:32, a1:8]
      0.bias axis 0  [0:32]
      2.weight axis 1  [a5:4, 0:32]
    pinned 0.weight axis 1 (8): an input of the model
    pinned 2.weight axis 0 (4): an output of the model
    pinned 2.bias axis 0 (4): an output of the model
    input input (*, 8): axis 0 free, axis 1 fixed (mat1 and mat2 shapes cannot be multiplied (2x6 and 8x32))
    """
    traced, groups = analyzed(model, example_inputs, ignore)
    return replace(groups, sizes=free_sizes(traced, groups.graph.inputs))


@public(plan=PLAN)
@undisturbed()
def verify(model: nn.Module, slim: nn.Module, plan: Plan, example_inputs: Any = None) -> Certificate:
    """Prove that `slim` is `model` less the units that `plan` removes, in float64.

    It is held against the original on `example_inputs`, by default zeros like the inputs that the plan was made with.

    Raises:
        InvalidArgument, InvalidInputs, TraceError: as for `shrink`.
        PlanError: the plan is of another architecture.
        NotEquivalent: it is not; the message names the first operator that differs.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> made = plan(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> verify(net, made.apply(net), made).deviation < 1e-9
    True
    """
    return plan.verify(model, slim, example_inputs)


def _report(model: nn.Module, result: Result, seconds: dict[str, float], job: JobReport | None) -> Report:
    made, operation = result.made, result.operation
    full = {group.leaf.id: group.size for group in made.groups}
    widths = {leaf: len(kept) for leaf, kept in made.keep.items()}
    budget = str(made.settings["budget"])
    timing = made.choice.timing
    if timing is not None:
        after = timing.measured if timing.measured is not None else timing.predicted
        requested, reached = 1 - timing.requested / timing.base, 1 - after / timing.base
    else:
        before, after = made.cost.of(budget)(full), made.cost.of(budget)(widths)
        requested, reached = float(made.settings["ratio"]), 1 - after / before if before else 0.0
    return Report(
        model=type(model).__name__,
        form="module" if operation.form == "module" else "graph",
        form_reason=operation.reason + _around(made.model),
        budget=budget,
        requested=requested,
        possible=made.choice.possible,
        unaligned=made.choice.unaligned,
        reached=reached,
        macs=Change(round(made.cost.macs(full)), round(made.cost.macs(widths))),
        params=Change(made.cost.params(full), made.cost.params(widths)),
        groups={g.name: Change(g.size, widths.get(g.leaf.id, g.size)) for g in made.groups},
        pinned=made.groups.pinned,
        certificate=result.certificate,
        inputs=operation.rung.inputs(),
        configuration=(*operation.configuration, *_left_whole(made.choice.whole)),
        latency=timing,
        recovery=result.recovery,
        agreement=result.agreement,
        metric=job,
        notes=result.notes,
        basis=basis_of(made.model),
        seconds=dict(seconds),
    )


def _around(model: nn.Module) -> str:
    if not isinstance(model, Parts):
        return ""
    names = ", ".join(dict.fromkeys(model.called))
    return f"; {model.why}; so these parts are cut, with what enters and leaves them as it was: {names}"


def _left_whole(names: tuple[str, ...]) -> list[str]:
    return [f"left whole, since no field of the configuration tells their width: {', '.join(names)}"] if names else []
