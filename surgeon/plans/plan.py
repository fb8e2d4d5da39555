"""Which units stay: a `Plan`, as a frozen value and as JSON. The format is written down in docs/plan-format.md."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from torch import fx, nn

from surgeon.allocation.fast_widths import legalise
from surgeon.device.profile import Profile
from surgeon.errors import InvalidArgument, NotEquivalent, PlanError
from surgeon.frontend.input_spec import describe, zeros
from surgeon.frontend.trace import normalise_inputs, trace_inputs, with_train_only
from surgeon.groups.coupling import Group, Groups, couple
from surgeon.ir.fingerprint import fingerprint, named_tensors
from surgeon.latency.model import Latency
from surgeon.plans.basis import basis_entry, mark, require
from surgeon.rules import Axes
from surgeon.support.documents import Document
from surgeon.support.files import write_text
from surgeon.surgery.build import carry_out, hold_against
from surgeon.verification import Certificate

FORMAT, VERSION = "surgeon-plan", 1
_DOCUMENT = Document("plan", FORMAT, VERSION, PlanError, "save the plan again")
#: Where a smaller model carries the plan that it was made by.
ATTRIBUTE = "surgeon_plan"


def attach(module: nn.Module, plan: Plan) -> None:
    """Let a smaller model carry its plan; in a graph's `meta` too, which a copy of it has as well."""
    mark(module, None)
    vars(module)[ATTRIBUTE] = plan
    if isinstance(module, fx.GraphModule):
        module.meta[ATTRIBUTE] = plan


def attached(module: nn.Module) -> Plan | None:
    """The plan that a smaller model carries."""
    return getattr(module, ATTRIBUTE, None) or getattr(module, "meta", {}).get(ATTRIBUTE)


def plan_of(module: nn.Module, given: Plan | None) -> Plan | None:
    """The plan that is given, or else the one that the module carries, if any.

    Raises:
        InvalidArgument: what is given is no plan.
    """
    if given is not None and not isinstance(given, Plan):
        raise InvalidArgument(f"plan is a {type(given).__name__}, not a surgeon.Plan")
    return given if given is not None else attached(module)


#: The models that plans were made for, by fingerprint, as long as something else holds them.
_MADE_FOR: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
_REPLAN = "make a plan for this model with surgeon.plan"


@dataclass(frozen=True)
class Cut:
    """The positions `keep`, ascending, of one tensor's `axis` of `size` positions that stay."""

    tensor: str
    axis: int
    size: int
    keep: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.tensor} axis {self.axis}: {self.size} → {len(self.keep)}"


@dataclass(frozen=True)
class Plan:
    """What is kept of every tensor of an architecture, whatever the tensors' values.

    `fingerprint` is that of the model; `inputs` describes example inputs; `settings` says how the plan came about.

    Raises:
        PlanError: a cut's indices are empty, unsorted, repeated or out of range, or an axis is cut twice.

    >>> plan = Plan("0" * 64, (Cut("fc.weight", 0, 4, (0, 2)),))
    >>> plan.tensor("fc.weight")
    {0: (0, 2)}
    >>> Plan("0" * 64, (Cut("fc.weight", 0, 4, (2, 0)),))
    Traceback (most recent call last):
        ...
    surgeon.errors.PlanError: cut of fc.weight axis 0: the kept indices are not strictly ascending
    """

    fingerprint: str
    cuts: tuple[Cut, ...]
    inputs: Mapping[str, Any] = field(default_factory=lambda: {"args": [], "kwargs": {}})
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[tuple[str, int]] = set()
        for cut in self.cuts:
            _check_cut(cut)
            if (cut.tensor, cut.axis) in seen:
                raise PlanError(f"cut of {cut.tensor} axis {cut.axis}: the axis is cut twice")
            seen.add((cut.tensor, cut.axis))

    @classmethod
    def of(
        cls,
        groups: Groups,
        keep: Mapping[int, Iterable[int]],
        settings: Mapping[str, Any] | None = None,
        *,
        model: nn.Module | None = None,
    ) -> Plan:
        """The plan that leaves the units `keep`, by leaf; leaves that are not named stay whole.

        `model` is the module that was traced; without it the fingerprint is taken of the traced graph, whose tensors
        are the same for most models.
        """
        units = {leaf: tuple(sorted(int(unit) for unit in kept)) for leaf, kept in keep.items()}
        for group in groups:
            _check_units(group, units.get(group.leaf.id))
        cuts = [
            Cut(name, index, axis.size, tuple(positions.tolist()))
            for name, axes in _tensors(groups).items()
            for index, axis in enumerate(axes)
            if (positions := groups.space.kept(axis, units)).size != axis.size
        ]
        digest = fingerprint(model if model is not None else groups.graph.module)
        if model is not None:
            _MADE_FOR[digest] = model
        own = {**(settings or {}), **basis_entry(model)}
        return cls(digest, tuple(cuts), describe(groups.graph.inputs), _plain(own))

    def keep(self, groups: Groups) -> dict[int, tuple[int, ...]]:
        """The kept units of every leaf that loses some: what `of` was given.

        Raises:
            PlanError: the cuts are not those of any choice of units; the message names the tensor.
        """
        axes = _tensors(groups)
        for cut in self.cuts:
            known = axes.get(cut.tensor)
            if known is None or cut.axis >= len(known) or known[cut.axis].size != cut.size:
                held = "no such tensor" if known is None else str(tuple(axis.size for axis in known))
                raise PlanError(f"{cut}: the model has {held} there; {_REPLAN}")
        found: dict[int, tuple[int, ...]] = {}
        for group in groups:
            for member in group.members:
                positions = self.tensor(member.tensor).get(member.axis)
                if positions is not None:
                    found[group.leaf.id] = _units(groups, group, axes[member.tensor], member.axis, positions)
                    break
        for name, known in axes.items():
            cuts = self.tensor(name)
            for index, axis in enumerate(known):
                expected = tuple(groups.space.kept(axis, found).tolist())
                if cuts.get(index, tuple(range(axis.size))) != expected:
                    pins = [p.reason for p in groups.pinned if (p.tensor, p.axis) == (name, index)]
                    why = f" ({pins[0]})" if pins else ""
                    raise PlanError(
                        f"{name} axis {index} of {axis.size}: the plan keeps {len(cuts.get(index, range(axis.size)))} "
                        f"positions, but {len(expected)} belong to the units that its other cuts keep{why}; {_REPLAN}"
                    )
        return {leaf: kept for leaf, kept in found.items() if len(kept) != _size(groups, leaf)}

    def tensor(self, name: str) -> dict[int, tuple[int, ...]]:
        """The kept positions of each axis of this tensor that loses some."""
        return self._by_tensor.get(name, {})

    @cached_property
    def _by_tensor(self) -> dict[str, dict[int, tuple[int, ...]]]:
        found: dict[str, dict[int, tuple[int, ...]]] = {}
        for cut in self.cuts:
            found.setdefault(cut.tensor, {})[cut.axis] = cut.keep
        return found

    def check(self, model: nn.Module) -> None:
        """Make sure that the plan was made for this architecture.

        Raises:
            PlanError: it was made for another one; the message names the first tensor that differs, where one does.
        """
        tensors = dict(named_tensors(model))
        same = fingerprint(model) == self.fingerprint
        for cut in self.cuts:
            tensor = tensors.get(cut.tensor)
            if tensor is None and same:  # a constant of the graph
                continue
            if tensor is None or cut.axis >= tensor.dim() or tensor.shape[cut.axis] != cut.size:
                held = "has no such tensor" if tensor is None else f"has shape {tuple(tensor.shape)} there"
                raise PlanError(f"the plan is of another architecture: {cut}, but the model {held}; {_REPLAN}")
        if not same:
            raise PlanError(
                "the plan is of another architecture: the tensors that it cuts fit, but others of the model have other "
                f"names or shapes than when it was made; {_REPLAN}"
            )

    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs of zeros like those that the plan was made with, as `(args, kwargs)`.

        >>> plan = Plan("", (), {"args": [{"dtype": "float32", "shape": [2, 3]}], "kwargs": {"flag": True}})
        >>> args, kwargs = plan.example_inputs()
        >>> args[0].shape, kwargs
        (torch.Size([2, 3]), {'flag': True})

        Raises:
            InvalidInputs: an input was neither a tensor nor made of plain values.
        """
        args = tuple(zeros(value) for value in self.inputs["args"])
        return args, {name: zeros(value) for name, value in self.inputs["kwargs"].items()}

    def apply(self, model: nn.Module, example_inputs: Any = None, form: str = "auto") -> nn.Module:
        """The smaller model, from any weights of the same architecture; `model` is left as it is.

        `example_inputs` are by default zeros like those that the plan was made with.

        Raises:
            PlanError: the plan is of another architecture, or of the model in another basis.
            NotEquivalent: the result is not the model less the removed units.
        """
        require(model, self.settings.get("basis"))
        return self.build(model, example_inputs, form)

    def build(self, model: nn.Module, example_inputs: Any = None, form: str = "auto") -> nn.Module:
        """As `apply`, whatever basis the weights are in: for a model that other weights are put into."""
        groups = self._couple(model, example_inputs)
        operation, _ = carry_out(model, groups, self.keep(groups), form)
        attach(operation.module, self)
        return operation.module

    def verify(self, model: nn.Module, slim: nn.Module, example_inputs: Any = None) -> Certificate:
        """Prove that `slim` is `model` less what the plan removes.

        Raises:
            PlanError: the plan is of another architecture, or of the model in another basis.
            NotEquivalent: it is not, or its weights were changed since; the first operator that differs is named.
        """
        groups = self._couple(model, example_inputs)
        require(model, self.settings.get("basis"))
        try:
            return hold_against(groups, self.keep(groups), slim)
        except NotEquivalent as error:
            raise NotEquivalent(
                f"{error}. If weights were changed since the cut, by compensation from data, recovery or training, "
                "nothing can be proved of them; what can be verified is plan.apply(model)"
            ) from error

    def align(self, profile: Profile, model: nn.Module | None = None, example_inputs: Any = None) -> Plan:
        """The fastest plan on a device that removes no more than this one: odd widths go up to fast ones.

        Rounding up often makes a model faster, because convolutions at odd widths leave onnxruntime's fast layout; a
        width stays as it is where that is no slower. Of the removed units the first ones come back.

        Args:
            profile: of the device, taken for this model (`surgeon.profile`).
            model: a model of the plan's architecture; only its shapes matter. It may be left out while the model that
                the plan was made for is still in memory.
            example_inputs: by default zeros like those that the plan was made with.

        Raises:
            InvalidArgument: `profile` is no profile.
            PlanError: the plan is of another architecture, or no model of it is at hand.
            ProfileError: the profile was taken for other models.
        """
        if not isinstance(profile, Profile):
            kind = type(profile).__name__
            raise InvalidArgument(f"profile is a {kind}, not a surgeon.Profile; surgeon.Profile.load reads a file")
        known = model if model is not None else _MADE_FOR.get(self.fingerprint)
        if known is None:
            raise PlanError("the model that the plan was made for is no longer in memory; pass model=")
        groups = self._couple(known, example_inputs)
        latency = Latency(groups, profile, model=self.fingerprint)
        return Plan.of(groups, legalise(groups, self.keep(groups), latency), self.settings, model=known)

    def _couple(self, model: nn.Module, example_inputs: Any) -> Groups:
        if not isinstance(model, nn.Module):
            raise InvalidArgument(f"model is a {type(model).__name__}, not a torch.nn.Module")
        self.check(model)
        inputs = self.example_inputs() if example_inputs is None else normalise_inputs(example_inputs)
        return couple(with_train_only(trace_inputs(model, inputs), model))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON. What was at `path` before stays until the whole file is written.

        Raises:
            OutputError: the file can't be written.
        """
        cuts = [{"tensor": c.tensor, "axis": c.axis, "size": c.size, "keep": list(c.keep)} for c in self.cuts]
        head = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint}
        rest = {"inputs": dict(self.inputs), "settings": dict(self.settings), "cuts": cuts}
        write_text(path, json.dumps({**head, **rest}, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            PlanError: the file is missing, not a plan, of a newer version, or malformed; the message says where.
        """
        return _DOCUMENT.read(path, cls._parse)

    @classmethod
    def _parse(cls, data: dict[str, Any]) -> Plan:
        inputs = _DOCUMENT.entry(data, "inputs", dict)
        _DOCUMENT.entry(inputs, "args", list, "inputs: ")
        _DOCUMENT.entry(inputs, "kwargs", dict, "inputs: ")
        cuts = []
        for index, entry in enumerate(_DOCUMENT.entry(data, "cuts", list)):
            place = f"cuts[{index}]: "
            if not isinstance(entry, dict):
                raise PlanError(f"{place}an object is expected, not {type(entry).__name__}")
            keep = _DOCUMENT.entry(entry, "keep", list, place)
            if not all(type(position) is int for position in keep):
                raise PlanError(f'{place}"keep" must hold integers only')
            axis, size = _DOCUMENT.entry(entry, "axis", int, place), _DOCUMENT.entry(entry, "size", int, place)
            cuts.append(Cut(_DOCUMENT.entry(entry, "tensor", str, place), axis, size, tuple(keep)))
        settings = _DOCUMENT.entry(data, "settings", dict)
        return cls(_DOCUMENT.entry(data, "fingerprint", str), tuple(cuts), inputs, settings)

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        rows = [(f"{cut.tensor} axis {cut.axis}", str(cut.size), str(len(cut.keep))) for cut in self.cuts]
        wide = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = [f"{a:<{wide[0]}}  {b:>{wide[1]}} → {c:>{wide[2]}}" for a, b, c in rows]
        head = f"plan of {len(rows)} cuts in {len(self._by_tensor)} tensors"
        return "\n".join([f"{head}: {chosen}" if chosen else head, *lines])


def choose(groups: Groups, scores: Mapping[int, np.ndarray], widths: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """The best units of each leaf that gets narrower, ascending; of equals the first are kept.

    >>> from surgeon.scoring.weight_criteria import _example
    >>> groups, group = _example()
    >>> choose(groups, {group.leaf.id: np.array([1.0, 2.0])}, {group.leaf.id: 1}) == {group.leaf.id: (1,)}
    True
    """
    kept = {}
    for group in groups:
        width = widths.get(group.leaf.id, group.size)
        if width < group.size:
            best = np.argsort(-scores[group.leaf.id], kind="stable")[:width]
            kept[group.leaf.id] = tuple(sorted(best.tolist()))
    return kept


def _tensors(groups: Groups) -> dict[str, Axes]:
    """The axes of every tensor of the graph, tied ones under each of their names."""
    graph = groups.graph
    found = dict(groups.tensors)
    same = {id(graph.tensor(name)): axes for name, axes in groups.tensors.items()}
    for name, tensor in named_tensors(graph.module):
        if id(tensor) in same:
            found.setdefault(name, same[id(tensor)])
    for name, canonical in graph.canonical.items():
        found.setdefault(canonical, groups.tensors[name])
    return found


def _units(groups: Groups, group: Group, axes: Axes, axis: int, positions: tuple[int, ...]) -> tuple[int, ...]:
    """The units of a group that have a position left in a tensor's axis."""
    left = np.array(positions)
    found = [units[left] for units in groups.space.units(axes[axis], group.leaf)]
    units = np.unique(np.concatenate(found))
    return tuple(units[units >= 0].tolist())


def _size(groups: Groups, leaf: int) -> int:
    return next(group.size for group in groups if group.leaf.id == leaf)


def _check_units(group: Group, units: tuple[int, ...] | None) -> None:
    if units is not None and (not units or len(set(units)) != len(units) or units[0] < 0 or units[-1] >= group.size):
        raise PlanError(f"group {group.name}: keep at least one of its {group.size} units, each once, from 0 on")


def _check_cut(cut: Cut) -> None:
    place, keep = f"cut of {cut.tensor} axis {cut.axis}", cut.keep
    if cut.axis < 0 or cut.size < 1 or max(cut.axis, cut.size) >= 1 << 48:
        raise PlanError(f"{place} of {cut.size} positions: there is no such axis")
    if not keep:
        raise PlanError(f"{place}: no index is kept; at least one must be")
    if any(a >= b for a, b in pairwise(keep)):
        repeated = len(set(keep)) != len(keep)
        raise PlanError(f"{place}: the kept indices are {'repeated' if repeated else 'not strictly ascending'}")
    if keep[0] < 0 or keep[-1] >= cut.size:
        wrong = keep[0] if keep[0] < 0 else keep[-1]
        raise PlanError(f"{place}: index {wrong} is out of range for {cut.size} positions")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them, so that a plan equals what is read back; a function is its name."""
    return json.loads(json.dumps(dict(settings), default=lambda value: getattr(value, "__name__", str(value))))
