"""The pipeline on one page: trace, couple, score, allocate, plan, operate, verify."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from surgeon.allocation import Keep, allocate, check_ratio
from surgeon.cost import Cost
from surgeon.coupling import Groups, couple
from surgeon.errors import InvalidArgument
from surgeon.importance import Criterion, check_finite, score
from surgeon.inputs import infer
from surgeon.plan import Plan, attach, choose
from surgeon.progress import collect, stage
from surgeon.replay import carry_out
from surgeon.report import Change, Report
from surgeon.select import Ignored, ignoring
from surgeon.surgery import Operation
from surgeon.trace import normalise_inputs, trace_inputs, with_train_only
from surgeon.verify import Certificate

Form = Literal["auto", "module", "graph"]


@dataclass(frozen=True)
class _Decision:
    groups: Groups
    plan: Plan
    keep: dict[int, Any]
    cost: Cost


def shrink(
    model: nn.Module,
    ratio: float,
    *,
    example_inputs: Any = None,
    budget: str = "macs",
    ignore: Ignored | Iterable[Ignored] = (),
    keep: Keep = None,
    align: int | None = None,
    importance: str | Criterion = "magnitude",
    scope: str = "global",
    seed: int = 0,
    form: Form = "auto",
    return_report: bool = False,
) -> Any:
    """A physically smaller copy of `model`, proved to be the original less the removed units.

    Args:
        model: any module that `torch.export` can trace; it is left as it is.
        ratio: the share of the budget to remove, at least 0 and less than 1.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; inferred where that is
            safe.
        budget: "macs", "params", or "channels" (that share of every group's units).
        ignore: module names, globs, modules or parameters to leave alone.
        keep: what is left of a group at least: a share (float) or a width (int), for all groups or by glob of names.
        align: widths are multiples of it; by default 16 where a group is at least 32 wide, less below. 1 switches it
            off.
        importance: the name of a criterion, or a function like those in `surgeon.importance`.
        scope: "global" compares groups with one another, "local" takes the same share of each.
        seed: seeds the criteria that draw at random.
        form: "module" or "graph" insists on the user's own class, or on a `torch.fx.GraphModule`.
        return_report: return `(slim, report)`.

    Returns:
        The smaller module, or `(module, Report)`.

    Raises:
        InvalidArgument, InvalidInputs, InvalidModel: bad input.
        TraceError: `torch.export` can't trace the model.
        NothingToPrune, Infeasible: the budget can't be met.
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
            importance=importance, scope=scope, seed=seed,
        )
        operation, certificate = carry_out(model, made.groups, made.keep, form)
        attach(operation.module, made.plan)
    if not return_report:
        return operation.module
    return operation.module, _report(model, made, operation, certificate, budget, float(ratio), seconds)


def plan(
    model: nn.Module,
    ratio: float,
    *,
    example_inputs: Any = None,
    budget: str = "macs",
    ignore: Ignored | Iterable[Ignored] = (),
    keep: Keep = None,
    align: int | None = None,
    importance: str | Criterion = "magnitude",
    scope: str = "global",
    seed: int = 0,
) -> Plan:
    """What `shrink` would remove, without touching a weight. Arguments and errors are those of `shrink`.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> made = plan(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> [(cut.tensor, cut.axis, len(cut.keep)) for cut in made.cuts]
    [('0.weight', 0, 16), ('0.bias', 0, 16), ('2.weight', 1, 16)]
    """
    return decide(
        model, ratio, example_inputs=example_inputs, budget=budget, ignore=ignore, keep=keep, align=align,
        importance=importance, scope=scope, seed=seed,
    ).plan


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


def analyse(model: nn.Module, example_inputs: Any, ignore: Ignored | Iterable[Ignored] = ()) -> Groups:
    """Trace and couple, with progress."""
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model is a {type(model).__name__}, not a torch.nn.Module")
    left_alone = ignoring(model, ignore)
    with stage("trace"):
        inputs = infer(model) if example_inputs is None else normalise_inputs(example_inputs)
        graph = with_train_only(trace_inputs(model, inputs), model)
    with stage("couple"):
        return couple(graph, left_alone)


def decide(
    model: nn.Module, ratio: float, *, example_inputs: Any, budget: str, ignore: Ignored | Iterable[Ignored],
    keep: Keep, align: int | None, importance: str | Criterion, scope: str, seed: int,
) -> _Decision:
    """Which units stay."""
    ratio = check_ratio(ratio)
    groups = analyse(model, example_inputs, ignore)
    check_finite(groups.graph)
    with stage("plan"):
        cost = Cost(groups)
        scores = score(groups, importance, seed)
        widths = allocate(groups, scores, cost, budget=budget, ratio=ratio, scope=scope, align=align, keep=keep)
        kept = choose(groups, scores, widths)
        name = importance if isinstance(importance, str) else getattr(importance, "__name__", "custom")
        settings = {"ratio": ratio, "budget": budget, "scope": scope, "align": align, "importance": name, "seed": seed}
        return _Decision(groups, Plan.of(groups, kept, settings, model=model), kept, cost)


def _report(
    model: nn.Module, made: _Decision, operation: Operation, certificate: Certificate, budget: str, ratio: float,
    seconds: dict[str, float],
) -> Report:
    full = {group.leaf.id: group.size for group in made.groups}
    widths = {leaf: len(kept) for leaf, kept in made.keep.items()}
    before, after = made.cost.of(budget)(full), made.cost.of(budget)(widths)
    return Report(
        model=type(model).__name__,
        form="module" if operation.form == "module" else "graph",
        form_reason=operation.reason,
        budget=budget,
        requested=ratio,
        reached=1 - after / before if before else 0.0,
        macs=Change(round(made.cost.macs(full)), round(made.cost.macs(widths))),
        params=Change(made.cost.params(full), made.cost.params(widths)),
        groups={g.name: Change(g.size, widths.get(g.leaf.id, g.size)) for g in made.groups},
        pinned=made.groups.pinned,
        certificate=certificate,
        seconds=dict(seconds),
    )
