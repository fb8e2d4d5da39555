"""Removes units that are dead after connections were pruned: those without input, and those without output."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import NotEquivalent
from surgeon.frontend.copies import duplicate
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.model_checks import check_dense
from surgeon.frontend.parameters import public
from surgeon.frontend.trace import Graph
from surgeon.frontend.wrappers import within_its_wrapper
from surgeon.groups.analyze import analyze
from surgeon.groups.coupling import Groups
from surgeon.groups.gains import rescaled
from surgeon.groups.interpreter import Interpreter, double, precisely
from surgeon.groups.weights import check_finite
from surgeon.plans.carried import attach
from surgeon.plans.plan import Plan
from surgeon.sparsity.removable import Sweep, find
from surgeon.sparsity.report import SweepReport
from surgeon.surgery.build import carry_out
from surgeon.verification.check import TOLERANCE, checked_inputs, relative
from surgeon.verification.masks import gathered

Form = Literal["module", "graph"]


@within_its_wrapper()
@public()
@undisturbed()
def sweep(
    model: nn.Module, example_inputs: Any = None, *, threshold: float = 0.0, return_report: bool = False
) -> Any:
    """A smaller copy of `model` without its dead neurons and channels, and with the same outputs.

    A unit is dead if none of its inputs is connected, or if nothing reads it; units that become dead when others are
    removed are removed too. A unit without inputs is constant: its contribution to the layers that read it is folded
    into their biases, or into the running mean of the BatchNorm that follows. Where that is impossible, the unit is
    left, and the report says why; of nonzero constants under a convolution with padding, one is left, which absorbs
    the others. Outputs are compared in float64.

    Args:
        model: any module that `torch.export` can trace; it is left as it is. Its outputs in eval mode are preserved.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; inferred where that is
            safe.
        threshold: entries of parameters below it in magnitude are set to zero first, as is useful after training with
            an L1 penalty. Outputs are then those of the model with these zeros.
        return_report: return `(slim, SweepReport)`.

    Returns:
        The smaller module, in the user's own class where possible, or `(module, SweepReport)`. If no unit is dead, it
        is a copy of the model.

    Raises:
        InvalidArgument, InvalidInputs, InvalidModel: bad input.
        TraceError: `torch.export` can't trace the model.
        NotEquivalent: the outputs differ; please report the network.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = net[0].weight.data[:3].zero_(), net[2].weight.data[:, 5].zero_()
    >>> slim, report = sweep(net, return_report=True)
    >>> slim[0].out_features, report.constant, report.unread
    (4, 3, 1)
    """
    check_dense(model)
    work = duplicate(model).cpu()
    if threshold:
        with torch.no_grad():
            for parameter in work.parameters():
                parameter.masked_fill_(parameter.abs() < threshold, 0)
    inputs = pytree.tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, example_inputs)
    groups = analyze(work, inputs)
    check_finite(groups.graph)
    swept = find(groups)
    slim, form, deviation = (_cut(work, groups, swept) if swept.keep else (work, "module", 0.0))
    slim.to(next((parameter.device for parameter in model.parameters()), torch.device("cpu")))
    attach(slim, Plan.of(groups, swept.keep, {"sweep": True, "threshold": threshold}, model=model), model)
    if not return_report:
        return slim
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, slim))
    return slim, SweepReport(type(model).__name__, form, swept.found, before, after, deviation)


def _cut(work: nn.Module, groups: Groups, swept: Sweep) -> tuple[nn.Module, Form, float]:
    """The smaller module, its form, and its deviation from `work`, into whose tensors the constants are folded."""
    graph = groups.graph
    before = {name: graph.tensor(name).detach().clone() for name, c in graph.canonical.items() if c in swept.shifts}
    exact = _shifted(groups, swept)
    operation, _ = carry_out(work, groups, swept.keep)
    kept = groups.kept(swept.keep)
    # Neither the constants that were folded nor what makes up for a norm is rounded here.
    exact = {**rescaled(groups, kept), **exact}
    small = {name: gathered(value, groups.tensors[name], kept) for name, value in exact.items()}
    expected = _outputs(graph, operation.traced, before)
    found = _outputs(operation.traced, operation.traced, small)
    deviation = max((relative(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
    if deviation > TOLERANCE:
        raise NotEquivalent(
            f"{type(work).__name__} without its dead units deviates by {deviation:.1e} (relative), more than "
            f"{TOLERANCE:.0e}; please report this network"
        )
    return operation.module, "module" if operation.form == "module" else "graph", deviation


def _shifted(groups: Groups, swept: Sweep) -> dict[str, Tensor]:
    """Fold the constants that are removed into tensors of the traced model; returns these tensors in float64."""
    exact = {}
    for name, shift in swept.shifts.items():
        tensor = groups.graph.tensor(next(n for n, c in groups.graph.canonical.items() if c == name))
        exact[name] = tensor.detach().double() + torch.from_numpy(np.asarray(shift))
        with torch.no_grad():
            tensor.copy_(exact[name])
    return exact


def _outputs(graph: Graph, given: Graph, instead: dict[str, Tensor]) -> list[Tensor]:
    """The outputs in float64, on the inputs of the graph `given`."""
    run = Interpreter(graph, checked_inputs(given), parameter=instead.get, precision=double)
    with precisely():
        return run.run()
