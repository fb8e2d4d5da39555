"""An optimizer for the smaller model that goes on where the original's stopped."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidArgument
from surgeon.frontend.parameters import public
from surgeon.plans.ancestors import ancestors
from surgeon.plans.basis import ROTATED
from surgeon.plans.carried import attached, left
from surgeon.plans.plan import Plan
from surgeon.support.arguments import instance

_OPTIMIZER = instance(Optimizer, "a torch.optim.Optimizer", "of a scheduler or a wrapper, give the one inside")
_REPLACED = "it was replaced since: the plan leaves {} of it, and it is {}"
_ROTATED = "its units are other directions now, since the model was rotated before the cut"
_UNKNOWN = "the plan does not tell which of the tensors were rotated before the cut"


@dataclass(frozen=True)
class TransferReport:
    """What became of an optimizer's state, by the names of the parameters.

    `optimizer` is its class. `kept` was cut like its parameter, `restarted` begins anew, for the reason given; `gone`
    are parameters that the smaller model does not have. `others` is the number of those that are not the model's, which
    are taken over as they are.

    >>> print(TransferReport("Adam", ("conv1.weight", "conv1.bias"), {"head.weight": "the layer was replaced"}))
    Adam: 2 parameters go on with their state
    head.weight starts anew: the layer was replaced
    """

    optimizer: str
    kept: tuple[str, ...]
    restarted: Mapping[str, str] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    others: int = 0

    def __str__(self) -> str:
        lines = [f"{self.optimizer}: {len(self.kept)} parameters go on with their state"]
        lines += [f"{name} starts anew: {reason}" for name, reason in self.restarted.items()]
        if self.gone:
            lines.append(f"not in the smaller model: {', '.join(self.gone)}")
        if self.others:
            lines.append(f"not of the model, and as they were: {self.others}")
        return "\n".join(lines)


@public(optimizer=_OPTIMIZER)
def transfer_optimizer(
    optimizer: Optimizer, slim: nn.Module, *, model: nn.Module | None = None, return_report: bool = False
) -> Any:
    """An optimizer of the same kind for a smaller model, whose state is the original's, cut like the parameters.

    Hyperparameters, groups of parameters and counts of steps are kept. Momentum, Adam's moments and whatever else has a
    parameter's shape are cut along the same axes. The state of a parameter starts anew, with a warning, where it can't
    follow: of a layer that was replaced since, and of tensors that `shrink` rotated before the cut (see
    `surgeon.project`), because the squares of gradients in one basis don't tell those in another. The old optimizer is
    left as it is. Parameters that it does not have, such as frozen ones, the new one does not have either.

    A scheduler of learning rates goes on as a copy that has the new optimizer in the old one's place:
    `scheduler = copy.deepcopy(scheduler, {id(optimizer): new})`.

    Args:
        optimizer: of a model from which `slim` was made, in one or several steps.
        slim: what `surgeon.shrink`, `Plan.apply`, `surgeon.sweep`, `Pruner.commit` or `surgeon.load` returned.
        model: the optimizer's model; needed only if `slim` was not made in this process of that very object.
        return_report: return `(optimizer, TransferReport)`, without a warning.

    Raises:
        InvalidArgument: `slim` carries no plan; the optimizer's parameters are not those of a model that it comes from;
            or the optimizer keeps a state of all parameters together, as LBFGS does.
        PlanError: the plan is of another architecture than `model`.

    >>> import surgeon
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    >>> net(torch.randn(4, 8)).sum().backward()
    >>> optimizer.step()
    >>> slim = surgeon.shrink(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> smaller = transfer_optimizer(optimizer, slim)
    >>> smaller.state[slim[0].weight]["exp_avg"].shape, smaller.param_groups[0]["lr"]
    (torch.Size([16, 8]), 0.01)
    """
    names, taken = _lineage(optimizer, slim, model)
    _refuse_joint(optimizer)
    own = dict(slim.named_parameters(remove_duplicate=False))
    rotated = _rotated(taken)
    state: defaultdict[Any, Any] = defaultdict(dict)
    kept, restarted, gone, others = [], {}, [], 0
    groups = []
    for group in optimizer.param_groups:
        options = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
        members: dict[str, Tensor] = {}
        for old in group["params"]:
            known_as = names.get(id(old))
            if known_as is None:
                members[f"other parameter {others}"], others = old, others + 1
                state[old] = copy.deepcopy(optimizer.state[old], {id(old): old}) if old in optimizer.state else {}
                continue
            name = next((each for each in known_as if each in own), None)
            if name is None:
                gone.append(known_as[0])
                continue
            members[name] = new = own[name]
            reason = _why_not(name, old, new, taken, rotated)
            if not reason:
                state[new] = _cut_state(name, optimizer, old, new, taken)
                kept.append(name)
            else:
                restarted[name] = reason
                state[new] = _state_at_first(optimizer, options, new)
        listed = {"param_names": list(members)} if "param_names" in group else {}
        groups.append({"params": list(members.values()), **options, **listed})
    made = _of_the_same_kind(optimizer, groups, state)
    report = TransferReport(type(optimizer).__name__, tuple(kept), restarted, tuple(gone), others)
    if return_report:
        return made, report
    if restarted:
        name, reason = next(iter(restarted.items()))
        warnings.warn(
            f"the state of {len(restarted)} of {len(restarted) + len(kept)} parameters starts anew in the new "
            f"optimizer, such as that of {name}: {reason}; return_report=True lists them",
            stacklevel=3,
        )
    return made


def _lineage(
    optimizer: Optimizer, slim: nn.Module, model: nn.Module | None
) -> tuple[dict[int, list[str]], Sequence[Plan]]:
    """The names of the optimizer's parameters, by their ids, and the plans from their model to the smaller one."""
    plan = attached(slim)
    if plan is None:
        kind = type(slim).__name__
        raise InvalidArgument(f"slim is a {kind} that carries no plan; give what surgeon.shrink returned")
    ids = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    names: dict[int, list[str]] = {}
    if model is not None:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        if not any(each in names for each in ids):
            raise InvalidArgument(
                "model has none of the parameters of the optimizer; give the model that it was made for"
            )
        taken = left(plan, model)
        taken[0].check(model)
        return names, taken
    line = ancestors(slim)
    known = [ancestor.names() for ancestor in line]
    found = [(sum(each in names for each in ids), place) for place, names in enumerate(known)]
    count, place = max(found, default=(0, 0))
    if not count:
        raise InvalidArgument(
            "optimizer has no parameter of a model from which slim was made, as far as slim knows: it forgets them "
            "when it is loaded; give the optimizer's model too: transfer_optimizer(optimizer, slim, model=model)"
        )
    return known[place], [each.plan for each in line[place:]]


def _rotated(taken: Iterable[Plan]) -> set[str] | None:
    """The tensors that were rotated; None where a plan does not tell."""
    found: set[str] = set()
    for step in taken:
        if "basis" in step.settings:
            if not isinstance(listed := step.settings.get(ROTATED), list):
                return None
            found.update(listed)
    return found


def _why_not(name: str, old: Tensor, new: Tensor, taken: Iterable[Plan], rotated: set[str] | None) -> str:
    """Why the state of a parameter can't go on; else empty."""
    if rotated is None:
        return _UNKNOWN
    if name in rotated:
        return _ROTATED
    expected = list(old.shape)
    for step in taken:
        for axis, keep in step.tensor(name).items():
            if axis >= len(expected) or keep[-1] >= expected[axis]:
                return _REPLACED.format("other positions", list(new.shape))
            expected[axis] = len(keep)
    return "" if expected == list(new.shape) else _REPLACED.format(expected, list(new.shape))


def _cut_state(name: str, optimizer: Optimizer, old: Tensor, new: Tensor, taken: Iterable[Plan]) -> dict[str, Any]:
    if old not in optimizer.state:
        return {}
    found = {}
    for key, value in optimizer.state[old].items():
        if not isinstance(value, Tensor):
            if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
                raise InvalidArgument(
                    f"optimizer is a {type(optimizer).__name__}, which keeps {key!r} of {name} as a "
                    f"{type(value).__name__} of tensors, whose shapes are not the parameter's; make a new one for the "
                    "smaller model"
                )
            found[key] = copy.deepcopy(value)
            continue
        kind = new.dtype if value.dtype == old.dtype else value.dtype
        place = new.device if value.device == old.device else value.device
        found[key] = _cut(f"{key!r} of {name}", value, old, taken, name, optimizer).to(place, kind)
    return found


def _cut(what: str, value: Tensor, old: Tensor, taken: Iterable[Plan], name: str, optimizer: Optimizer) -> Tensor:
    """What is left of a value of the parameter's shape, along whose axes it may also have one entry for all."""
    value = value.detach().clone()
    if value.numel() == 1:
        return value
    if value.dim() != old.dim() or any(a not in (b, 1) for a, b in zip(value.shape, old.shape, strict=True)):
        raise InvalidArgument(
            f"optimizer is a {type(optimizer).__name__}, which keeps {what} with shape {list(value.shape)}, and the "
            f"parameter has {list(old.shape)}: how it is cut can't be told; make a new optimizer for the smaller model"
        )
    whole = {axis for axis, size in enumerate(value.shape) if size == old.shape[axis]}
    for step in taken:
        for axis, keep in step.tensor(name).items():
            if axis in whole:
                value = value.index_select(axis, torch.tensor(keep, device=value.device))
    return value


def _state_at_first(optimizer: Optimizer, options: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """The state that an optimizer of this kind gives a parameter when it is made."""
    if not optimizer.state:
        return {}
    taken = inspect.signature(type(optimizer)).parameters
    defaults = {key: value for key, value in optimizer.defaults.items() if key in taken}
    try:
        fresh = type(optimizer)([{"params": [parameter], **copy.deepcopy(dict(options))}], **defaults)
    except (TypeError, ValueError):  # of the user's own kind, with other arguments: it makes its state when it steps
        return {}
    return dict(fresh.state[parameter]) if parameter in fresh.state else {}


def _refuse_joint(optimizer: Optimizer) -> None:
    """Refuse an optimizer that keeps parameters, or another optimizer, elsewhere than in its groups and its state."""
    for name, value in _attributes(optimizer):
        leaves = pytree.tree_leaves(value)
        if any(isinstance(leaf, Tensor | nn.Module | Optimizer) for leaf in leaves):
            raise InvalidArgument(
                f"optimizer is a {type(optimizer).__name__}, which holds tensors or another optimizer in its attribute "
                f"{name!r}, so that its state can't be cut parameter by parameter; make a new one for the smaller "
                "model, or transfer the one inside"
            )


def _attributes(optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """What an optimizer of this kind has beside its parameters, without hooks and without what schedulers put on it."""
    for name, value in vars(optimizer).items():
        hooks = name.startswith("_optimizer_") or name == "_opt_called"
        if name not in ("state", "param_groups", "defaults") and not hooks and not callable(value):
            yield name, value


def _of_the_same_kind(optimizer: Optimizer, groups: list[dict[str, Any]], state: Mapping[Any, Any]) -> Optimizer:
    """As torch makes an optimizer again that was pickled."""
    made: Optimizer = object.__new__(type(optimizer))
    attributes = {name: copy.deepcopy(value) for name, value in _attributes(optimizer)}
    made.__setstate__(
        {**attributes, "defaults": copy.deepcopy(optimizer.defaults), "state": state, "param_groups": groups}
    )
    return made
