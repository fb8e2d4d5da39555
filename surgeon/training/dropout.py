"""Dropout rates adapted to the capacity that is left after pruning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from surgeon.cost.cost import weights_of
from surgeon.errors import InvalidArgument
from surgeon.frontend.parameters import bare_module_in_place, public
from surgeon.frontend.trace import normalize_inputs, trace_inputs
from surgeon.groups.coupling import Groups, couple
from surgeon.ir.operators import is_a
from surgeon.plans.carried import plan_of
from surgeon.plans.plan import PLAN, Plan
from surgeon.surgery.attributes import module_path


@dataclass(frozen=True)
class Scaled:
    """A dropout's rate before and after, and the connections of the layers that it feeds."""

    rate: float
    scaled: float
    connections: int
    left: int

    def __str__(self) -> str:
        return f"{self.rate:g} → {self.scaled:.3g}, {self.left:,} of {self.connections:,} connections"


@public(slim=bare_module_in_place, plan=PLAN)
def scale_dropout(slim: nn.Module, plan: Plan | None = None, example_inputs: Any = None) -> dict[str, Scaled]:
    """Lower the rate of each Dropout module, in place, to rate · √(connections left / connections before).

    The connections are those of the layers that a dropout feeds: the convolutions and linear layers that read it,
    directly or through operators without weights. Nonzero weights count as connections left, so connections pruned one
    by one are accounted for too. Call it once, after pruning. Han et al., "Learning both Weights and Connections for
    Efficient Neural Networks", 2015, arXiv:1506.02626.

    Args:
        slim: the pruned model.
        plan: what was cut from it; by default the plan attached to it, if any.
        example_inputs: by default zeros like the example inputs of the plan.

    Returns:
        What was changed, by module name.

    Raises:
        InvalidArgument: neither a plan nor example inputs are known.
        TraceError: `torch.export` can't trace the model.

    >>> import torch, surgeon
    >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    >>> slim = surgeon.shrink(net, 0.75, example_inputs=torch.randn(1, 8))
    >>> print(scale_dropout(slim)["2"])
    0.5 → 0.25, 160 of 640 connections
    """
    plan = plan_of(slim, plan)
    if example_inputs is not None:
        inputs = normalize_inputs(example_inputs)
    elif plan is not None:
        inputs = plan.example_inputs()
    else:
        raise InvalidArgument(f"{type(slim).__name__} carries no plan; pass example_inputs=")
    groups = couple(trace_inputs(slim, inputs))
    modules = slim.named_modules(remove_duplicate=False)
    dropouts = {path: module for path, module in modules if isinstance(module, _DropoutNd)}
    weights: dict[str, set[str]] = {}
    for node in groups.graph.nodes:
        path = module_path(node)
        if path is not None and path in dropouts and is_a(node, "dropout"):
            weights.setdefault(path, set()).update(_read_by(node, groups))
    found = {}
    for path, names in weights.items():
        left = sum(int(groups.graph.tensor(name).count_nonzero()) for name in names)
        before = sum(_before(groups.graph.tensor(name), name, plan) for name in names)
        if before and left != before:
            rate = dropouts[path].p
            found[path] = Scaled(rate, rate * math.sqrt(left / before), before, left)
    for path, each in found.items():
        dropouts[path].p = each.scaled
    return found


def _read_by(node: fx.Node, groups: Groups) -> Iterator[str]:
    """The weights of the operators that contract over a node's result, also through operators without weights."""
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
    """The number of connections that a weight had before anything was cut."""
    sizes = {cut.axis: cut.size for cut in plan.cuts if cut.tensor == name} if plan is not None else {}
    return math.prod(sizes.get(axis, size) for axis, size in enumerate(weight.shape))
