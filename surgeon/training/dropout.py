"""Dropout rates for the capacity that pruning has left."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from surgeon.cost.cost import weights_of
from surgeon.errors import InvalidArgument
from surgeon.frontend.parameters import module_in_place, public
from surgeon.frontend.trace import normalize_inputs, trace_inputs
from surgeon.groups.coupling import Groups, couple
from surgeon.ir.operators import is_a
from surgeon.plans.plan import PLAN, Plan, plan_of
from surgeon.surgery.attributes import module_path


@dataclass(frozen=True)
class Scaled:
    """A dropout's rate before and after, and the connections of the layers that it serves."""

    rate: float
    scaled: float
    connections: int
    left: int

    def __str__(self) -> str:
        return f"{self.rate:g} → {self.scaled:.3g}, {self.left:,} of {self.connections:,} connections"


@public(slim=module_in_place, plan=PLAN)
def scale_dropout(slim: nn.Module, plan: Plan | None = None, example_inputs: Any = None) -> dict[str, Scaled]:
    """Lower the rate of each Dropout module, in place, to rate · √(connections left / connections before).

    The connections are those of the layers that a dropout serves: the convolutions and linear layers that read it,
    through whatever stands between. What is left of them are the weights that are not zero, so that connections that
    were pruned one by one count too. Call it once, after pruning. Han et al., "Learning both Weights and Connections
    for Efficient Neural Networks", 2015, arXiv:1506.02626.

    Args:
        slim: the pruned model.
        plan: of what was cut from it; by default the one that it carries, if any.
        example_inputs: by default zeros like those that the plan was made with.

    Returns:
        What was changed, by the name of the module.

    Raises:
        InvalidArgument: there is neither a plan nor example inputs.
        TraceError: `torch.export` can't trace the model.

    >>> import torch, surgeon
    >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    >>> slim = surgeon.shrink(net, 0.75, example_inputs=torch.randn(1, 8))
    >>> print(scale_dropout(slim)["2"])
    0.5 → 0.25, 160 of 640 connections
    """
    plan = plan_of(slim, plan)
    if plan is None and example_inputs is None:
        raise InvalidArgument(f"{type(slim).__name__} carries no plan; pass example_inputs=")
    inputs = normalize_inputs(example_inputs) if example_inputs is not None else _inputs(plan)
    groups = couple(trace_inputs(slim, inputs))
    served: dict[str, set[str]] = {}
    for node in groups.graph.nodes:
        path = module_path(node)
        if path is not None and _is_dropout(node) and isinstance(slim.get_submodule(path), _DropoutNd):
            served.setdefault(path, set()).update(_read_by(node, groups))
    found = {}
    for path, names in served.items():
        left = sum(int(groups.graph.tensor(name).count_nonzero()) for name in names)
        before = sum(_before(groups.graph.tensor(name), name, plan) for name in names)
        module = slim.get_submodule(path)
        assert isinstance(module, _DropoutNd)
        if before and left != before:
            found[path] = Scaled(module.p, module.p * math.sqrt(left / before), before, left)
    for path, each in found.items():
        module = slim.get_submodule(path)
        assert isinstance(module, _DropoutNd)
        module.p = each.scaled
    return found


def _inputs(plan: Plan | None) -> Any:
    assert plan is not None  # scale_dropout has seen to that
    return plan.example_inputs()


def _is_dropout(node: fx.Node) -> bool:
    return is_a(node, "dropout")


def _read_by(node: fx.Node, groups: Groups) -> Iterator[str]:
    """The weights of the operators that sum over what a node computes, through those that do not have any."""
    seen: set[fx.Node] = set()
    ahead = list(node.users)
    while ahead:
        user = ahead.pop()
        if user in seen or user.op != "call_function":
            continue
        seen.add(user)
        weights = [name for name in weights_of(user, groups) if groups.graph.tensor(name).dim() > 1]
        if groups.typed[user].contracted and weights:
            yield from (groups.graph.canonical[name] for name in weights)
        else:
            ahead += user.users


def _before(weight: Tensor, name: str, plan: Plan | None) -> int:
    """How many connections a weight had before anything was cut."""
    sizes = {cut.axis: cut.size for cut in plan.cuts if cut.tensor == name} if plan is not None else {}
    return math.prod(sizes.get(axis, size) for axis, size in enumerate(weight.shape))
