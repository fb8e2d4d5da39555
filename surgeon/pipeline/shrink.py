"""The pipeline on one page: trace, couple, score, allocate, plan, operate, verify."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from surgeon.allocation.allocate import allocate
from surgeon.allocation.limits import Keep
from surgeon.allocation.reach import lowest, off_default
from surgeon.calibration.data import Calibration, calibrate
from surgeon.calibration.labels import Loss
from surgeon.cost.alignment import Alignment
from surgeon.cost.cost import Cost
from surgeon.cost.target import Target
from surgeon.deploy.profiling import profile_or_file
from surgeon.frontend.ignore import Ignored
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import public
from surgeon.groups.analyze import analyse
from surgeon.groups.coupling import Groups
from surgeon.groups.weights import check_finite
from surgeon.pipeline.latency_target import Device, LatencyTarget, Timing, check_device, check_request
from surgeon.plans.basis import basis_of
from surgeon.plans.plan import PLAN, Plan, attach, choose
from surgeon.projection.project import rotated
from surgeon.recovery import Recovery, recover_groups
from surgeon.reporting.report import Change, Report
from surgeon.scoring import Criterion
from surgeon.scoring.reconstruction import reconstruction
from surgeon.scoring.registry import RECONSTRUCTION, score_groups, settle
from surgeon.support.arguments import POSITIVE
from surgeon.support.progress import collect, stage
from surgeon.support.scratch import temporary_folder
from surgeon.surgery import Operation
from surgeon.surgery.build import carry_out
from surgeon.verification import Certificate

Form = Literal["auto", "module", "graph"]


@dataclass(frozen=True)
class _Decision:
    model: nn.Module
    groups: Groups
    plan: Plan
    keep: dict[int, Any]
    cost: Cost
    timing: Timing | None = None
    data: Calibration | None = None
    possible: float | None = None
    unaligned: dict[str, int] = field(default_factory=dict)


@public(device=profile_or_file, threads=POSITIVE)
@undisturbed()
def shrink(
    model: nn.Module,
    ratio: float | None = None,
    *,
    example_inputs: Any = None,
    budget: str = "macs",
    ignore: Ignored | Iterable[Ignored] = (),
    keep: Keep = None,
    align: int | None = None,
    importance: str | Criterion | None = None,
    scope: str = "global",
    seed: int = 0,
    latency_ms: float | None = None,
    device: Device = None,
    threads: int | None = None,
    max_params: int | None = None,
    data: Any = None,
    samples: int = 256,
    loss: Loss | None = None,
    project: bool = True,
    compensate: bool = True,
    distil: bool = True,
    form: Form = "auto",
    return_report: bool = False,
) -> Any:
    """A physically smaller copy of `model`, proved to be the original less the removed units.

    Args:
        model: any module that `torch.export` can trace; it is left as it is. What it holds that can't be copied, such
            as a lock or an open file, the result shares with it.
        ratio: the share of the budget to remove, at least 0 and less than 1. No less is removed; more, by at most 2 %
            of what is to be left, or by one step of one group's widths where that is more.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; inferred where that is
            safe.
        budget: "macs", "params", "channels" (that share of every group's units), or "latency": the share of the
            milliseconds of one run in onnxruntime, one sample where the batch is free. Widths are chosen by what the
            operators were measured to take, the result is measured, and widths are chosen anew until it takes 98 to
            100 % of what was asked for, or one step of a group's widths less; where none do, that is an error.
        ignore: module names, globs, modules or parameters to leave alone.
        keep: what is left of a group at least: a share (float) or a width (int), for all groups or by glob of names.
        align: widths are multiples of it; by default 16 where a group is at least 32 wide, less below, and less where
            the budget can't be met so, which the report tells. 1 switches it off.
        importance: the name of a criterion, or a function like those in `surgeon.importance`; by default
            "reconstruction" where there are data, else "magnitude".
        scope: "global" compares groups with one another, "local" takes the same share of each, "isomorphic" compares
            groups of the same structure and takes the same share of each structure.
        seed: seeds the criteria that draw at random.
        latency_ms: instead of a ratio, the milliseconds that the result may take on `device`.
        device: for a latency, the profile of the CPU where the model will run, or the file that it is in; by default
            this CPU is profiled. On another CPU than this one nothing can be measured, only predicted.
        threads: for a latency, onnxruntime's threads, no more than that CPU has; by default the profile's, or 1.
        max_params: for a latency, how many parameters the result may have beside.
        data: unlabeled inputs: a tensor, or an iterable of batches such as a DataLoader, read once. With them the units
            that are rebuilt best from the others go, widths are chosen by what that does to the model's output, and
            the layers that are left are fitted to make up for the rest: no labels, no training. "synthetic" does the
            same with inputs that are made from the model alone, as `surgeon.synthesize` does.
        samples: how many of them to use at most.
        loss: a function of the model's output and of what each batch of `data` holds beside the inputs, such as
            `loss(output, labels)`, that gives a scalar. "reconstruction" then weighs errors by the gradients of this
            loss, instead of labels that it draws; the criteria "taylor", "fisher" and "gradient" are made of them.
        project: whether, where data guide the selection, linear streams and attention heads are first rotated as
            `surgeon.project` does, so that directions go instead of units. The rotated model computes the same; the
            certificate, and the plan that the result carries, are then of that model.
        compensate: whether layers are fitted; the certificate is always that of the cut alone.
        distil: whether the layers that were fitted are then moved together, as `surgeon.recover` says.
        form: "module" or "graph" insists on the user's own class, or on a `torch.fx.GraphModule`.
        return_report: return `(slim, report)`.

    Returns:
        The smaller module, or `(module, Report)`.

    Raises:
        InvalidArgument, InvalidInputs, InvalidModel: bad input.
        TraceError: `torch.export` can't trace the model.
        NothingToPrune, Infeasible: the budget can't be met; the message names the nearest ratio that can.
        NotEquivalent: the result is not the original less the removed units; please report the network.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(1024, 10))
    >>> slim = shrink(net, 0.5, example_inputs=torch.randn(1, 3, 8, 8))
    >>> slim[0].out_channels < 64, type(slim).__name__
    (True, 'Sequential')
    """
    with collect() as seconds:
        made = decide(
            model, ratio, example_inputs=example_inputs, budget=budget, ignore=ignore, keep=keep, align=align,
            importance=importance, scope=scope, seed=seed, latency_ms=latency_ms, device=device, threads=threads,
            max_params=max_params, data=data, samples=samples, loss=loss, project=project,
        )
        operation, certificate = carry_out(made.model, made.groups, made.keep, form)
        recovery = None
        if made.data is not None and compensate:
            with stage("recover"):
                kept = made.groups.kept(made.keep)
                module, recovery = recover_groups(
                    made.model, operation.module, made.groups, kept, made.data, distil=distil
                )
            operation = replace(operation, module=module)
        attach(operation.module, made.plan)
    if not return_report:
        return operation.module
    return operation.module, _report(model, made, operation, certificate, recovery, seconds)


@public(device=profile_or_file, threads=POSITIVE)
@undisturbed()
def plan(
    model: nn.Module,
    ratio: float | None = None,
    *,
    example_inputs: Any = None,
    budget: str = "macs",
    ignore: Ignored | Iterable[Ignored] = (),
    keep: Keep = None,
    align: int | None = None,
    importance: str | Criterion | None = None,
    scope: str = "global",
    seed: int = 0,
    latency_ms: float | None = None,
    device: Device = None,
    threads: int | None = None,
    max_params: int | None = None,
    data: Any = None,
    samples: int = 256,
    loss: Loss | None = None,
) -> Plan:
    """What `shrink` would remove, without touching a weight. Arguments and errors are those of `shrink`.

    It is a plan of the units of this model: with data, `shrink` rotates the model first, by default. To plan in that
    basis, give this function what `surgeon.project` returns.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> made = plan(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> [(cut.tensor, cut.axis, len(cut.keep)) for cut in made.cuts]
    [('0.weight', 0, 16), ('0.bias', 0, 16), ('2.weight', 1, 16)]
    """
    return decide(
        model, ratio, example_inputs=example_inputs, budget=budget, ignore=ignore, keep=keep, align=align,
        importance=importance, scope=scope, seed=seed, latency_ms=latency_ms, device=device, threads=threads,
        max_params=max_params, data=data, samples=samples, loss=loss,
    ).plan


@public()
@undisturbed()
def inspect(model: nn.Module, example_inputs: Any = None, ignore: Ignored | Iterable[Ignored] = ()) -> Groups:
    """The coupled groups of a model with their members, and every pinned axis with the reason; prints as text.

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
    """
    return analyse(model, example_inputs, ignore)


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
    model: nn.Module, ratio: float | None, *, example_inputs: Any, budget: str, ignore: Ignored | Iterable[Ignored],
    keep: Keep, align: int | None, importance: str | Criterion | None, scope: str, seed: int,
    latency_ms: float | None = None, device: Device = None, threads: int | None = None, max_params: int | None = None,
    data: Any = None, samples: int = 256, loss: Loss | None = None, project: bool = False,
) -> _Decision:
    """Which units stay."""
    check_request(ratio, latency_ms, budget)
    timed = budget == "latency" or latency_ms is not None
    check_device(timed, align=align, scope=scope, device=device, threads=threads, max_params=max_params)
    importance = settle(importance, data, loss)
    guided = importance == RECONSTRUCTION
    groups = analyse(model, example_inputs, ignore)
    check_finite(groups.graph)
    cost = Cost(groups)
    calibration = None
    if data is not None:
        with stage("read data"):
            calibration = calibrate(data, groups.graph, model, samples, labelled=loss is not None, seed=seed)
    if guided and project and calibration is not None:
        model, groups = rotated(model, groups, calibration, ignore)
        cost = Cost(groups)
    selection = None
    if guided and calibration is not None:
        selection = reconstruction(model, groups, calibration, seed=seed, loss=loss)
    with stage("plan"):
        scores = (
            selection.scores if selection is not None
            else score_groups(model, groups, importance, calibration, loss, seed)
        )
    name = importance if isinstance(importance, str) else getattr(importance, "__name__", "custom")
    settings: dict[str, Any] = {"ratio": ratio, "budget": budget, "importance": name, "seed": seed}
    timing, possible, unaligned = None, None, {}
    if timed:
        with temporary_folder() as folder:
            target = LatencyTarget(model, groups, cost, device, threads, folder)
            curves = selection.damages if selection is not None else None
            kept, timing = target.decide(scores, latency_ms, ratio, keep, max_params, curves)
        settings |= {
            "budget": "latency", "latency_ms": latency_ms, "device": timing.device, "threads": timing.threads,
            "max_params": max_params,
        }
    else:
        assert ratio is not None  # check_request has seen to that
        with stage("plan"):
            widths = allocate(
                groups, scores, cost, budget=budget, ratio=ratio, scope=scope, align=align, keep=keep,
                curves=selection.damages if selection is not None else None,
            )
            kept = choose(groups, scores, widths)
            alignment = Alignment(groups, cost)
            possible = Target(cost, budget, ratio).removed(lowest(alignment, align, keep))
            unaligned = off_default(alignment, widths) if align is None else {}
        settings |= {"scope": scope, "align": align}
    made = Plan.of(groups, kept, settings, model=model)
    return _Decision(model, groups, made, kept, cost, timing, calibration, possible, unaligned)


def _report(
    model: nn.Module, made: _Decision, operation: Operation, certificate: Certificate, recovery: Recovery | None,
    seconds: dict[str, float],
) -> Report:
    full = {group.leaf.id: group.size for group in made.groups}
    widths = {leaf: len(kept) for leaf, kept in made.keep.items()}
    budget = str(made.plan.settings["budget"])
    if made.timing is not None:
        timing = made.timing
        after = timing.measured if timing.measured is not None else timing.predicted
        requested, reached = 1 - timing.requested / timing.base, 1 - after / timing.base
    else:
        before, after = made.cost.of(budget)(full), made.cost.of(budget)(widths)
        requested, reached = float(made.plan.settings["ratio"]), 1 - after / before if before else 0.0
    return Report(
        model=type(model).__name__,
        form="module" if operation.form == "module" else "graph",
        form_reason=operation.reason,
        budget=budget,
        requested=requested,
        possible=made.possible,
        unaligned=made.unaligned,
        reached=reached,
        macs=Change(round(made.cost.macs(full)), round(made.cost.macs(widths))),
        params=Change(made.cost.params(full), made.cost.params(widths)),
        groups={g.name: Change(g.size, widths.get(g.leaf.id, g.size)) for g in made.groups},
        pinned=made.groups.pinned,
        certificate=certificate,
        latency=made.timing,
        recovery=recovery,
        basis=basis_of(made.model),
        seconds=dict(seconds),
    )
