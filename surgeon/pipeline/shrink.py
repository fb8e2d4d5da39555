"""The pipeline on one page: trace, couple, score, allocate, plan, operate, verify."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import numpy as np
from torch import nn

from surgeon.calibration.data import Calibration
from surgeon.calibration.other_sizes import calibrated
from surgeon.calibration.stand_in import REMEDY, Unserved, finite, noise_for_cut, served
from surgeon.cost.cost import Cost
from surgeon.frontend.free_sizes import free_sizes
from surgeon.frontend.ignore import Ignored, named
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import NOISE, public
from surgeon.frontend.parts import Parts
from surgeon.frontend.wrappers import within_its_wrapper
from surgeon.groups.coupling import Groups
from surgeon.groups.weights import check_finite
from surgeon.ir.fingerprint import fingerprint
from surgeon.pipeline.around import PARTS, analyzed, check_runs, whole
from surgeon.pipeline.latency_target import LatencyTarget
from surgeon.pipeline.options import BY_CONCERN, Data, Options, Planning, Repair, Select, Shrinking, Target, flat
from surgeon.pipeline.own_class import Choice, Chooser, at_example_sizes, built, planned
from surgeon.plans.basis import basis_of
from surgeon.plans.carried import attach
from surgeon.plans.plan import PLAN, Plan
from surgeon.projection.project import rotated
from surgeon.recovery import Recovery, recover_groups
from surgeon.reporting.report import Change, Report
from surgeon.scoring import Criterion
from surgeon.scoring.reconstruction import reconstruction
from surgeon.scoring.registry import RECONSTRUCTION, score_groups, settle
from surgeon.support.memory import using_memory
from surgeon.support.progress import collect, stage
from surgeon.support.scratch import temporary_folder
from surgeon.surgery import Operation
from surgeon.verification import Certificate

Form = Literal["auto", "module", "graph"]


@dataclass(frozen=True)
class _Judged:
    """The model and its groups in the basis in which units are judged, by scores and maybe by curves of damage."""

    model: nn.Module
    groups: Groups
    importance: str | Criterion
    scores: Mapping[int, np.ndarray]
    curves: Mapping[int, np.ndarray] | None = None


@dataclass(frozen=True)
class _Decision:
    model: nn.Module
    groups: Groups
    choice: Choice
    settings: dict[str, Any]
    cost: Cost
    data: Calibration | None = None
    unserved: str = ""  # why there is no noise in place of data
    fingerprint: str | None = None  # of the whole, where `model` is parts of it

    @property
    def keep(self) -> dict[int, tuple[int, ...]]:
        return self.choice.keep

    def plan(self) -> Plan:
        made = Plan.of(self.groups, self.keep, self.settings, model=self.model)
        return made if self.fingerprint is None else replace(made, fingerprint=self.fingerprint)


@within_its_wrapper()
@public(**BY_CONCERN)
@undisturbed()
@flat(Target, Data, Select, Repair)
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
        made = decide(model, asked, example_inputs, form)
        assert made.choice.built is not None  # a form was given
        operation, certificate = made.choice.built
        operation, recovery, notes = _made_up_for(asked, made, operation)
        if isinstance(made.model, Parts):
            operation = replace(operation, module=whole(model, operation.module, made.model))
            check_runs(operation.module, made.model.called, example_inputs)
        attach(operation.module, made.plan(), model)
    if not return_report:
        return operation.module
    return operation.module, _report(model, made, operation, certificate, recovery, notes, seconds)


@public(**BY_CONCERN)
@undisturbed()
@flat(Target, Data, Select)
def plan(
    model: nn.Module, ratio: float | None = None, *, example_inputs: Any = None, **options: Unpack[Planning]
) -> Plan:
    """What `shrink` would remove, without touching a weight. Arguments and errors are those of `shrink`.

    It is the plan of the default form: for a class that derives widths from one another, these are tied as by `shrink`.
    It is a plan of the units of this model: `shrink` rotates the model first, by default, where something in it can be
    rotated. To plan in that basis, give this function what `surgeon.project` returns. To plan by the weights alone,
    ask for `importance="magnitude"`.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> made = plan(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> [(cut.tensor, cut.axis, len(cut.keep)) for cut in made.cuts]
    [('0.weight', 0, 16), ('0.bias', 0, 16), ('2.weight', 1, 16)]
    """
    asked = Options.of(ratio=ratio, project=False, **options)
    with using_memory(asked.data.memory):
        return decide(model, asked, example_inputs).plan()


@public()
@undisturbed()
def inspect(model: nn.Module, example_inputs: Any = None, ignore: Ignored | Iterable[Ignored] = ()) -> Groups:
    """The coupled groups of a model, every pinned axis with the reason, and which sizes of the inputs are free.

    It prints as text.

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
    """Prove that `slim` is `model` less the units that `plan` removes.

    Raises:
        PlanError: the plan is of another architecture.
        NotEquivalent: it is not; the message names the first operator that differs.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> made = plan(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> verify(net, made.apply(net), made).deviation < 1e-9
    True
    """
    return plan.verify(model, slim, example_inputs)


def decide(
    model: nn.Module, options: Options, example_inputs: Any = None, form: Form | None = None
) -> _Decision:
    """Which units stay; with a `form`, also what that makes of the model."""
    target, data, select = options.target, options.data, options.select
    importance = settle(select.importance, data.source, data.loss)
    settings = options.settings() | {"ignore": named(model, select.ignore)}
    traced, groups = analyzed(model, example_inputs, select.ignore, _needs_all(options, form))
    architecture = None
    if isinstance(traced, Parts):
        settings[PARTS], form, architecture = list(traced.called), form and "module", fingerprint(model)
    model, unserved = traced, ""
    check_finite(groups.graph)
    calibration = None
    if data.source is not None:
        with stage("read data"):
            groups, calibration = calibrated(
                data.source, groups, model, data.samples, select.ignore, labeled=data.loss is not None, seed=select.seed
            )
        judged = _judged(model, groups, importance, options, calibration)
    else:
        judged, calibration, unserved = _without_data(model, groups, importance, options, form)
        settings |= {"data": NOISE, "samples": calibration.samples} if calibration is not None else {}
    model, groups, importance = judged.model, judged.groups, judged.importance
    settings["importance"] = importance if isinstance(importance, str) else getattr(importance, "__name__", "custom")
    cost = Cost(groups)
    chooser = Chooser(model, groups, cost, judged.scores, judged.curves, options)

    def chosen(chooser: Chooser) -> Choice:
        if form is None:
            return planned(model, groups, chooser)
        varying = calibration is not None and bool(calibration.varying)
        return built(model, groups, chooser, form, at_example_sizes(model, groups) if varying else None)

    if not target.timed:
        return _Decision(model, groups, chosen(chooser), settings, cost, calibration, unserved, architecture)
    with temporary_folder() as folder:
        timer = LatencyTarget(model, groups, cost, target.device, target.threads, folder)
        choice = chosen(replace(chooser, timer=timer))
    assert choice.timing is not None
    settings |= {"budget": "latency", "device": choice.timing.device, "threads": choice.timing.threads}
    return _Decision(model, groups, choice, settings, cost, calibration, unserved)


def _judged(
    model: nn.Module, groups: Groups, importance: str | Criterion, options: Options, data: Calibration | None
) -> _Judged:
    """Judge the units; by reconstruction, once the model is rotated."""
    seed, loss = options.select.seed, options.data.loss
    if importance == RECONSTRUCTION and data is not None:
        if options.repair.project:
            model, groups = rotated(model, groups, data, options.select.ignore)
        selection = reconstruction(model, groups, data, seed=seed, loss=loss)
        return _Judged(model, groups, importance, selection.scores, selection.damages)
    with stage("plan"):
        return _Judged(model, groups, importance, score_groups(model, groups, importance, data, loss, seed))


def _without_data(
    model: nn.Module, groups: Groups, importance: str | Criterion, options: Options, form: Form | None
) -> tuple[_Judged, Calibration | None, str]:
    """What is judged on noise, and the noise; or by `importance`, and why there is no noise if that was not asked for.

    A criterion that was asked for is kept to: then noise is for fitting layers alone.
    """
    explicit, why = options.select.importance is not None, ""
    if options.repair.compensate and not (explicit and form is None):
        try:
            if isinstance(model, Parts):
                raise Unserved("noise is for a model that can be traced as a whole")
            noise = noise_for_cut(model, groups, options.select.seed)
            criterion = importance if explicit else RECONSTRUCTION
            judged = served(lambda: _judged(model, groups, criterion, options, noise))
            finite(judged.scores, judged.curves or {})
            return judged, noise, ""
        except Unserved as error:
            why = str(error)
    return _judged(model, groups, importance, options, None), None, why


def _made_up_for(
    asked: Options, made: _Decision, operation: Operation
) -> tuple[Operation, Recovery | None, tuple[str, ...]]:
    """The result with its layers fitted, what was done, and what is to be said of it."""
    notes = (f"nothing makes up for the cut: {made.unserved}; {REMEDY}",) if made.unserved else ()
    if made.data is None or not asked.repair.compensate:
        return operation, None, notes
    given, kept = asked.data.source is not None, made.groups.kept(made.keep)
    distill = given and asked.repair.distill

    def fit() -> tuple[nn.Module, Recovery]:
        return recover_groups(operation.module, made.groups, kept, made.data, distill=distill)

    try:
        with stage("recover"):
            module, recovery = fit() if given else served(fit)
    except Unserved as error:
        return operation, None, (f"no layer was fitted: {error}; {REMEDY}",)
    if not given:
        chosen = "units were chosen and " if asked.select.importance is None else ""
        how = f"{chosen}layers were fitted on {made.data.samples} samples of noise"
        notes = (f"no data were given, so {how}; {REMEDY}",)
    return replace(operation, module=module), recovery, notes


def _needs_all(options: Options, form: Form | None) -> str:
    """What is asked for that needs the whole model traced; empty if nothing does."""
    if form == "graph":
        return "a graph is of the whole model"
    if options.data.source is not None:
        return "data is of the whole model"
    return "a latency is of the whole model" if options.target.timed else ""


def _report(
    model: nn.Module, made: _Decision, operation: Operation, certificate: Certificate, recovery: Recovery | None,
    notes: tuple[str, ...], seconds: dict[str, float],
) -> Report:
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
        certificate=certificate,
        inputs=operation.rung.inputs(),
        configuration=(*operation.configuration, *_left_whole(made.choice.whole)),
        latency=timing,
        recovery=recovery,
        notes=notes,
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
