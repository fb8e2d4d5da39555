"""A `Plan` of which units to keep, as a frozen value and as JSON. The format is documented in docs/plan-format.md."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from surgeon.device.profile import PROFILE, Profile
from surgeon.errors import InvalidArgument, PlanError
from surgeon.frontend.input_spec import describe, rebuilt
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import module as a_module
from surgeon.frontend.parameters import public, units
from surgeon.groups.coupling import GROUPS, Group, Groups
from surgeon.ir.fingerprint import fingerprint, named_tensors
from surgeon.plans.basis import ROTATED, basis_entry
from surgeon.plans.cuts import Cut, check_cut, composed, cuts
from surgeon.rules import Axes
from surgeon.support.arguments import instance, listed, mapping, refusal, text
from surgeon.support.documents import Document
from surgeon.support.files import write_text
from surgeon.verification import Certificate

FORMAT, VERSION = "surgeon-plan", 2
_DOCUMENT = Document("plan", FORMAT, VERSION, PlanError, "save the plan again")
_REPLAN = "make a plan for this model with surgeon.plan"


def _plans(name: str, value: Any) -> tuple[Plan, ...]:
    found = listed(value)
    if found is None or not all(isinstance(each, Plan) for each in found):
        raise refusal(name, value, "plans, each of the result of the one before")
    return found


@public(
    groups=GROUPS, keep=units, settings=mapping("a mapping"), name=text, profile=PROFILE, fingerprint=text,
    cuts=cuts, inputs=mapping("a mapping of args and kwargs"), steps=_plans, model=a_module,
)
@dataclass(frozen=True)
class Plan:
    """Which positions of every tensor of an architecture are kept, whatever the values of the tensors.

    `fingerprint` is the model's; `cuts` says of one axis of one tensor each which positions stay; `inputs` describes
    example inputs; `settings` records how the plan was made. Of a model that was made smaller several times, `steps`
    has the plan of each time, and the cuts are those of all.

    Raises:
        InvalidArgument: an argument is of another type.
        PlanError: a cut's indices are empty, unsorted, repeated or out of range, or an axis is cut twice.

    >>> import surgeon, tempfile, torch
    >>> net, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(1, 8)
    >>> plan = surgeon.plan(net, 0.5, example_inputs=x)
    >>> len(plan.tensor("0.weight")[0])                        # of the rows of the first weight, (32, 8)
    16
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plan.save(f"{folder}/plan.json")
    ...     again = Plan.load(f"{folder}/plan.json")
    >>> again.check(net)                                       # no error: it is of this architecture
    >>> slim = again.apply(net)
    >>> slim[0].out_features, again.verify(net, slim).deviation < 1e-9
    (16, True)
    >>> groups = surgeon.inspect(net, x)
    >>> Plan.of(groups, plan.keep(groups)).cuts == plan.cuts
    True
    >>> fast = plan.align(surgeon.profile(net, x), net)        # widths that are slow on this CPU are rounded up
    >>> len(fast.tensor("0.weight").get(0, range(32))) >= 16
    True
    >>> Plan("0" * 64, (Cut("fc.weight", 0, 4, (2, 0)),))
    Traceback (most recent call last):
        ...
    surgeon.errors.PlanError: cut of fc.weight axis 0: the kept indices are not strictly ascending
    """

    fingerprint: str
    cuts: tuple[Cut, ...]
    inputs: Mapping[str, Any] = field(default_factory=lambda: {"args": [], "kwargs": {}})
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Plan, ...] = ()

    def __post_init__(self) -> None:
        seen: set[tuple[str, int]] = set()
        for cut in self.cuts:
            check_cut(cut)
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
        """The plan that keeps of `groups` the units `keep`, by leaf; leaves that are not named are kept whole.

        `model` is the traced module; without it the fingerprint is that of the traced graph, whose tensors are the same
        for most models. `settings` are recorded in the plan.

        Raises:
            InvalidArgument: a leaf is not of these groups, or an argument is of another type.
            PlanError: a group's units are none, repeated or out of range.
        """
        kept = {leaf: tuple(sorted(each)) for leaf, each in keep.items()}
        if unknown := kept.keys() - {group.leaf.id for group in groups}:
            raise InvalidArgument(f"keep: {min(unknown)} is not the leaf of a group; see surgeon.inspect")
        for group in groups:
            own, size = kept.get(group.leaf.id, (0,)), group.size
            if not own or len(set(own)) != len(own) or own[0] < 0 or own[-1] >= size:
                raise PlanError(f"group {group.name}: keep at least one of its {size} units, each once, from 0 on")
        cuts = [
            Cut(name, index, axis.size, tuple(positions.tolist()))
            for name, axes in _tensors(groups).items()
            for index, axis in enumerate(axes)
            if (positions := groups.space.kept(axis, kept)).size != axis.size
        ]
        digest = fingerprint(model if model is not None else groups.graph.module)
        recorded = _plain({**(settings or {}), **basis_entry(model)})
        return cls(digest, tuple(cuts), describe(groups.graph.inputs), recorded)

    def keep(self, groups: Groups) -> dict[int, tuple[int, ...]]:
        """The kept units of every leaf of `groups` that loses some, as they were given to `of`.

        Raises:
            InvalidArgument: `groups` are not what `surgeon.inspect` returns.
            PlanError: no choice of units leads to these cuts; the message names the tensor.
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
        sizes = {group.leaf.id: group.size for group in groups}
        return {leaf: kept for leaf, kept in found.items() if len(kept) != sizes[leaf]}

    def tensor(self, name: str) -> dict[int, tuple[int, ...]]:
        """The kept positions of each axis that loses some, of the tensor called `name`, from 0 on.

        Raises:
            InvalidArgument: `name` is not a string.
        """
        return self._by_tensor.get(name, {})

    @cached_property
    def _by_tensor(self) -> dict[str, dict[int, tuple[int, ...]]]:
        found: dict[str, dict[int, tuple[int, ...]]] = {}
        for cut in self.cuts:
            found.setdefault(cut.tensor, {})[cut.axis] = cut.keep
        return found

    def check(self, model: nn.Module) -> None:
        """Make sure that the tensors that the plan cuts are those of `model`. Others may have other shapes, as has a
        classifier for other classes.

        Raises:
            InvalidArgument: `model` is not a module.
            PlanError: it was made for another architecture; the message names the first cut tensor that differs.
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

    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Zeros like the inputs that the plan was made with, as `(args, kwargs)`; lengths and the like are not zero.

        >>> plan = Plan("", (), {"args": [{"dtype": "float32", "shape": [2, 3]}], "kwargs": {"flag": True}})
        >>> args, kwargs = plan.example_inputs()
        >>> args[0].shape, kwargs
        (torch.Size([2, 3]), {'flag': True})

        Raises:
            InvalidInputs: an input was neither a tensor nor a plain value.
        """
        args = tuple(rebuilt(value) for value in self.inputs["args"])
        return args, {name: rebuilt(value) for name, value in self.inputs["kwargs"].items()}

    @undisturbed()
    def apply(self, model: nn.Module, example_inputs: Any = None, form: str = "auto") -> nn.Module:
        """The smaller model, for any weights of the same architecture; `model` is left as it is.

        `example_inputs` are by default zeros like the inputs that the plan was made with; `form` is as for `shrink`.

        Raises:
            InvalidArgument, InvalidInputs, TraceError: as for `shrink`.
            PlanError: the plan is of another architecture, or of the model in another basis.
            SurgeryError: the form is "module", and the class can't hold the plan.
            NotEquivalent: the result is not the model less the removed units.
        """
        from surgeon.pipeline import replay  # of a higher rank: plans themselves are mere values

        return replay.apply(self, model, example_inputs, form)

    @undisturbed()
    def verify(self, model: nn.Module, slim: nn.Module, example_inputs: Any = None) -> Certificate:
        """Prove that `slim` is `model` less what the plan removes, on `example_inputs` or zeros like the plan's own.

        Raises:
            InvalidArgument, InvalidInputs, TraceError: as for `shrink`.
            PlanError: the plan is of another architecture, or of the model in another basis.
            NotEquivalent: it is not; the message names the first operator that differs, and weights that are not the
                model's.
        """
        from surgeon.pipeline import replay

        return replay.verify(self, model, slim, example_inputs)

    @undisturbed()
    def align(self, profile: Profile, model: nn.Module, example_inputs: Any = None) -> Plan:
        """The fastest plan on a device that removes no more than this one, with slow widths rounded up to fast ones.

        Rounding up often makes a model faster, because convolutions at odd widths fall out of onnxruntime's fast
        layout; widths for which it does not are left as they are. The removed units with the lowest indices are
        restored first.

        Args:
            profile: of the device, taken for this model (`surgeon.profile`).
            model: a model of the plan's architecture; only its shapes matter.
            example_inputs: by default zeros like the inputs that the plan was made with.

        Raises:
            InvalidArgument: `profile` is not a profile.
            PlanError: the plan is of another architecture.
            ProfileError: the profile was taken for other models.
        """
        from surgeon.pipeline import replay

        return replay.align(self, profile, model, example_inputs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to `path` as JSON, atomically.

        Raises:
            InvalidArgument: `path` is not a path.
            OutputError: the file can't be written.
        """
        rest: dict[str, Any] = {"version": 1, **self._entries()}  # which older versions of surgeon read too
        if self.steps:
            rest = {"version": VERSION, "steps": [step._entries() for step in self.steps]}
        write_text(path, json.dumps({"format": FORMAT, **rest}, ensure_ascii=False) + "\n")

    def _entries(self) -> dict[str, Any]:
        cuts = [{"tensor": c.tensor, "axis": c.axis, "size": c.size, "keep": list(c.keep)} for c in self.cuts]
        inputs, settings = dict(self.inputs), dict(self.settings)
        return {"fingerprint": self.fingerprint, "inputs": inputs, "settings": settings, "cuts": cuts}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote to `path`.

        Raises:
            InvalidArgument: `path` is not a path.
            PlanError: the file is missing, not a plan, of a newer version, or malformed; the message says where.
        """
        return _DOCUMENT.read(path, cls._parse)

    @classmethod
    def _parse(cls, data: dict[str, Any]) -> Plan:
        if data["version"] == 1:
            return cls._parse_one(data)
        found = []
        for index, entry in enumerate(_DOCUMENT.entry(data, "steps", list)):
            if not isinstance(entry, dict):
                raise PlanError(f"steps[{index}]: an object is expected, not {type(entry).__name__}")
            found.append(cls._parse_one(entry, f"steps[{index}]: "))
        if len(found) < 2:
            raise PlanError(f"steps: {len(found)} are listed; at least two are expected")
        return together(found)

    @classmethod
    def _parse_one(cls, data: dict[str, Any], where: str = "") -> Plan:
        inputs = _DOCUMENT.entry(data, "inputs", dict, where)
        _DOCUMENT.entry(inputs, "args", list, f"{where}inputs: ")
        _DOCUMENT.entry(inputs, "kwargs", dict, f"{where}inputs: ")
        cuts = []
        for index, entry in enumerate(_DOCUMENT.entry(data, "cuts", list, where)):
            place = f"{where}cuts[{index}]: "
            if not isinstance(entry, dict):
                raise PlanError(f"{place}an object is expected, not {type(entry).__name__}")
            keep = _DOCUMENT.entry(entry, "keep", list, place)
            if not all(type(position) is int for position in keep):
                raise PlanError(f'{place}"keep" must hold integers only')
            axis, size = _DOCUMENT.entry(entry, "axis", int, place), _DOCUMENT.entry(entry, "size", int, place)
            cuts.append(Cut(_DOCUMENT.entry(entry, "tensor", str, place), axis, size, tuple(keep)))
        settings = _DOCUMENT.entry(data, "settings", dict, where)
        return cls(_DOCUMENT.entry(data, "fingerprint", str, where), tuple(cuts), inputs, settings)

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.settings.items() if name != ROTATED)
        rows = [(f"{cut.tensor} axis {cut.axis}", str(cut.size), str(len(cut.keep))) for cut in self.cuts]
        wide = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = [f"{a:<{wide[0]}}  {b:>{wide[1]}} → {c:>{wide[2]}}" for a, b, c in rows]
        taken = f", in {len(self.steps)} steps" if self.steps else ""
        head = f"plan of {len(rows)} cuts in {len(self._by_tensor)} tensors{taken}"
        return "\n".join([f"{head}: {chosen}" if chosen else head, *lines])


def steps(plan: Plan) -> tuple[Plan, ...]:
    """The plans that a plan consists of, in their order, each of the result of the one before."""
    return plan.steps or (plan,)


def together(taken: Sequence[Plan]) -> Plan:
    """The plan of several steps, each of the result of the one before; its cuts are of what the first one was made for.

    >>> halves = Plan("a", (Cut("w", 0, 8, (1, 3, 5, 7)),))
    >>> both = together([halves, Plan("b", (Cut("w", 0, 4, (0, 2)),))])
    >>> both.fingerprint, both.tensor("w"), len(both.steps)
    ('a', {0: (1, 5)}, 2)
    """
    first, *rest = taken
    if not rest:
        return first
    of_first = ("basis", ROTATED)
    settings = {name: value for name, value in taken[-1].settings.items() if name not in of_first}
    settings |= {name: first.settings[name] for name in of_first if name in first.settings}
    cuts = functools.reduce(lambda done, step: tuple(composed(done, step.cuts)), rest, first.cuts)
    return Plan(first.fingerprint, cuts, first.inputs, settings, tuple(taken))


PLAN = instance(Plan, "a surgeon.Plan", "surgeon.Plan.load reads a file")


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
    """The units of a group of which some position in a tensor's axis is kept."""
    left = np.array(positions)
    found = [units[left] for units in groups.space.units(axes[axis], group.leaf)]
    units = np.unique(np.concatenate(found))
    return tuple(units[units >= 0].tolist())


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON values, so that a plan equals what is read back; a function becomes its name."""
    return json.loads(json.dumps(dict(settings), default=lambda value: getattr(value, "__name__", str(value))))
