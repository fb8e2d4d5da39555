"""What the Python code of a model's class asks of the widths: where it derives one from another, and by which call.

The class is run once, whole, on tensors without values and with numbers that remember where they are from (`tracked`).
Each call of torch can then be made again at other widths, alone, with operands of the sizes that the axes predict. A
call that fails then, computes other sizes, or takes another number that is no size, is a `Demand` on the widths of the
groups that it involves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.frontend.isolation import quietly, with_masks_as_given, without_fast_attention
from surgeon.groups.coupling import Groups
from surgeon.ir.axes import Axis
from surgeon.rules import Axes, arguments, where
from surgeon.surgery.aligned import Notes, aligned
from surgeon.surgery.attributes import (
    NAMED_ALIKE,
    Attribute,
    Meaning,
    describe_tensors,
    meant,
    possible_meanings,
    printed_sizes,
    renumbered_size,
    size_pairs,
    takes_sizes,
    with_sizes,
)
from surgeon.surgery.canonical import Value, map_leaves
from surgeon.surgery.own_class import own_class
from surgeon.surgery.record import Stand
from surgeon.surgery.rewrite import propagate, slim_graph
from surgeon.surgery.tracked import Formula, Operand, TorchCall, Tracked, TrackedFloat, Watch, evaluated, leaves_of

#: At how many widths, drawn at random, it is seen whether the code does what the axes say.
SAMPLES = 3


class At:
    """Widths at which formulas are evaluated."""

    def __init__(self, code: Code, widths: Mapping[int, int]) -> None:
        self.code = code
        self.kept = code.groups.kept({leaf: range(width) for leaf, width in widths.items()})
        self._printed: dict[tuple[str, ...], Any] = {}
        self._pairs: dict[tuple[str, ...], Any] = {}

    def size(self, value: Value | None, dim: int, before: int) -> int:
        axes = self.code.axes_of(value)
        return self.kept.width(axes[dim]) if axes is not None and dim < len(axes) else before

    def printed(self, paths: tuple[str, ...]) -> Mapping[Any, tuple[Any, Any]]:
        """The sizes that the operators of some modules are called with, old and new."""
        if paths not in self._printed:
            operators = [each for path in paths for each in self.code.operators.get(path, ())]
            self._printed[paths] = printed_sizes(operators, self.kept)
        return self._printed[paths]

    def attribute(self, attribute: Attribute) -> int:
        """What an attribute is rewritten to."""
        sizes = self.printed(attribute.paths)
        meaning = self.code.meanings.get((attribute.module, attribute.name))
        if meaning is not None:
            return meant(sizes, meaning)
        if attribute.paths not in self._pairs:
            self._pairs[attribute.paths] = size_pairs(sizes)
        found = renumbered_size(self._pairs[attribute.paths], attribute.value)
        return int(found if attribute.place is None else found[attribute.place])


@dataclass(frozen=True, eq=False)
class Demand:
    """Something in the class's code that may hold at some widths only: a call, or the outcome of a branch.

    `leaves` are those that it depends on, `attributes` what it reads; `words` say what it is.
    """

    leaves: frozenset[int]
    attributes: frozenset[Attribute]
    words: str
    call: TorchCall | None = field(repr=False, default=None)
    branch: tuple[Formula, bool] | None = field(repr=False, default=None)


class Code:
    """A model's class as it ran: its calls of torch and its branches, with the axes of the tensors in them.

    `meanings` says of attributes that hold one of several equal sizes which one it is, where that was found out.
    """

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self.groups = groups
        self.stand = Stand()
        self.sizes = {group.leaf.id: group.size for group in groups}
        self.operators = with_sizes(groups)
        self.meanings: dict[tuple[str, str], Meaning] = {}
        self._axes: dict[Value, Axes] = {}
        self._nodes: dict[Value, fx.Node] = {}
        self._order: Mapping[int, int] = {}
        self.attributes: list[Attribute] = []
        self._dependence: dict[tuple[Attribute, Meaning | None], frozenset[int]] = {}
        self.calls: list[TorchCall] = []
        self.branches: list[tuple[Formula, bool]] = []
        self._run(model)

    def _run(self, model: nn.Module) -> None:
        groups = self.groups
        kept = groups.kept({})
        _, copies = slim_graph(groups, kept)
        tensors = dict(groups.graph.values)
        as_traced = Notes(self.stand)
        _, results = propagate(groups, kept, copies, tensors, as_traced)
        candidate, _ = own_class(model, groups, kept, tensors)
        candidate.eval()
        recorder = Notes(self.stand)
        watch = Watch(recorder)
        args, kwargs = pytree.tree_map(self.stand.of, groups.graph.inputs)
        with (
            quietly(), with_masks_as_given(), without_fast_attention(), torch.no_grad(),
            self.stand.mode, recorder, watch,
        ):
            self._track(candidate, watch)
            candidate(*args, **kwargs)
        self.calls, self.branches = watch.calls, watch.branches
        self._order = aligned(recorder.notes, as_traced.notes)
        for node, result in results.items():
            for value, axes in zip(_flat(result), groups.axes_of(node), strict=False):
                if isinstance(value, Value):
                    self._axes.setdefault(value, axes)
                    self._nodes.setdefault(value, node)
        for name, axes in groups.tensors.items():
            self._axes[Value(-1, id(groups.graph.values[name]))] = axes

    def _track(self, candidate: nn.Module, watch: Watch) -> None:
        """Let the attributes that are rewritten with the widths be numbers with formulas."""
        names: dict[nn.Module, list[str]] = {}
        for name, module in candidate.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        whole = At(self, {})
        for module, known_as in names.items():
            paths = tuple(path for path in known_as if path in self.operators)
            sizes = whole.printed(paths)
            named = {key: _named(paths, key, pair[0], watch) for key, pair in sizes.items() if key in NAMED_ALIKE}
            describe_tensors(module, named)
            if not takes_sizes(module):
                continue
            olds = size_pairs(sizes)
            for key, value in list(vars(module).items()):
                if key.startswith("_") or isinstance(value, bool) or not isinstance(value, int | list | tuple):
                    continue
                if isinstance(value, int):
                    if value in olds:
                        vars(module)[key] = self._attribute(Attribute(known_as[0], key, paths, value), value, watch)
                elif value and all(type(v) is int for v in value) and any(v in olds for v in (*value, tuple(value))):
                    vars(module)[key] = type(value)(
                        self._attribute(Attribute(known_as[0], key, paths, tuple(value), place), each, watch)
                        for place, each in enumerate(value)
                    )

    def _attribute(self, attribute: Attribute, value: int, watch: Watch) -> Tracked:
        self.attributes.append(attribute)
        return Tracked(value, lambda at: at.attribute(attribute), watch)

    def drawn(self, seed: int) -> dict[int, int]:
        """Widths of all groups: at first, none is whole; later, half of them are."""
        rng = random.Random(seed)
        return {
            leaf: size if seed and rng.random() < 0.5 else drawn(rng, size) for leaf, size in self.sizes.items()
        }

    def axes_of(self, value: Value | None) -> Axes | None:
        """The axes of a tensor, where they are known."""
        return self._axes.get(self._in_graph(value)) if value is not None else None

    def node_of(self, value: Value | None) -> fx.Node | None:
        """The operator of the graph that computes a tensor."""
        return self._nodes.get(self._in_graph(value)) if value is not None else None

    def _in_graph(self, value: Value) -> Value:
        return Value(self._order.get(value.call, -2), value.place) if value.call >= 0 else value

    def demands(self) -> Iterator[Demand]:
        """What may not hold at other widths."""
        for call in self.calls:
            leaves = list(leaves_of((call.args, call.kwargs, call.results)))
            if any(isinstance(each, int | float) and not isinstance(each, bool) for each in leaves):
                reader = _Reader(self)
                for each in leaves:
                    reader.read(each)
                if reader.leaves:
                    yield Demand(frozenset(reader.leaves), frozenset(reader.attributes), self._words(call), call)
        for formula, outcome in self.branches:
            reader = _Reader(self)
            reader.read_formula(formula)
            if reader.leaves:
                yield Demand(
                    frozenset(reader.leaves), frozenset(reader.attributes), "a branch on sizes",
                    branch=(formula, outcome),
                )

    def depends(self, attribute: Attribute) -> frozenset[int]:
        """The leaves that an attribute depends on."""
        key = attribute, self.meanings.get((attribute.module, attribute.name))
        if key not in self._dependence:
            near = {
                leaf.id
                for path in attribute.paths
                for node, _ in self.operators.get(path, ())
                for each in (node, *node.all_input_nodes)
                for axes in self.groups.axes_of(each)
                for leaf in self.groups.leaves(axes)
            } & self.sizes.keys()
            self._dependence[key] = frozenset(leaf for leaf in near if self._moves(attribute, key[1], leaf))
        return self._dependence[key]

    def _moves(self, attribute: Attribute, meaning: Meaning | None, leaf: int) -> bool:
        sizes = At(self, {leaf: self.sizes[leaf] - 1}).printed(attribute.paths)
        values = attribute.value if isinstance(attribute.value, tuple) else (attribute.value,)
        return any(
            meant(sizes, each) != value
            for value in values
            for each in ([meaning] if meaning is not None else possible_meanings(sizes, value))
        )

    def _words(self, call: TorchCall) -> str:
        for each in leaves_of(call.results):
            node = self.node_of(each)
            if node is not None:
                return where(node)
        return str(getattr(call.function, "__name__", call.function))

    def holds(self, demand: Demand, widths: Mapping[int, int]) -> bool:
        """Whether the code does at these widths what the axes say it does."""
        at = At(self, widths)
        if demand.branch is not None:
            formula, outcome = demand.branch
            try:
                return bool(formula(at)) == outcome
            except (ArithmeticError, ValueError):
                return False
        assert demand.call is not None
        return self._as_predicted(demand.call, at)

    def _as_predicted(self, call: TorchCall, at: At) -> bool:
        expected = self._expected(call, at)
        if expected is None:
            return True
        if not self._same_numbers(call, at):
            return False
        operands: dict[int, Tensor] = {}
        try:
            with quietly(), without_fast_attention(), torch.no_grad(), self.stand.mode:
                for each in leaves_of((call.args, call.kwargs)):
                    if isinstance(each, Operand):
                        axes = self.axes_of(each.value)
                        sizes = tuple(at.kept.width(axis) for axis in axes) if axes is not None else each.sizes
                        operands[id(each)] = torch.empty(sizes, dtype=each.dtype)
                args, kwargs = evaluated((call.args, call.kwargs), at, operands)
                result = call.function(*args, **kwargs)
        except Exception:  # noqa: BLE001  (torch's functions raise all kinds)
            return False
        have = [tuple(each.shape) if isinstance(each, Tensor) else None for each in leaves_of(result)]
        return len(have) == len(expected) and all(
            want is None or want == found for want, found in zip(expected, have, strict=True)
        )

    def _expected(self, call: TorchCall, at: At) -> list[tuple[int, ...] | None] | None:
        """The sizes of the results as the axes say; None where nothing is known of them."""
        axes = [self.axes_of(each) if isinstance(each, Value) else None for each in leaves_of(call.results)]
        if all(each is None for each in axes):
            return None
        return [tuple(map(at.kept.width, each)) if each is not None else None for each in axes]

    def _same_numbers(self, call: TorchCall, at: At) -> bool:
        """Whether the numbers that are no sizes stay: a scale that the code computes from widths does not."""
        node = next((n for each in leaves_of(call.results) if (n := self.node_of(each)) is not None), None)
        if node is None or not isinstance(node.target, torch._ops.OpOverload):
            return True
        typed, given = self.groups.typed[node], arguments(node)
        for name, print_ in typed.args.items():
            if name in given and given[name] is None and print_(at.kept) is not None:
                return False  # what the code leaves to torch is another number now
        for each in leaves_of((call.args, call.kwargs)):
            is_number = isinstance(each, TrackedFloat) or (isinstance(each, Tracked) and not typed.args)
            if is_number and each.formula(at) != each:
                return False
        return True


class _Reader(At):
    """Notes the leaves and the attributes that formulas read."""

    def __init__(self, code: Code) -> None:
        super().__init__(code, {})
        self.leaves: set[int] = set()
        self.attributes: set[Attribute] = set()

    def read(self, leaf: Any) -> None:
        """Note what a leaf of a call's arguments or results depends on."""
        if isinstance(leaf, Tracked | TrackedFloat):
            self.read_formula(leaf.formula)
        value = leaf.value if isinstance(leaf, Operand) else leaf
        if isinstance(value, Value):
            self._note(self.code.axes_of(value) or ())

    def read_formula(self, formula: Formula) -> None:
        with suppress(ArithmeticError, ValueError, TypeError):
            formula(self)

    def size(self, value: Value | None, dim: int, before: int) -> int:
        axes = self.code.axes_of(value)
        if axes is not None and dim < len(axes):
            self._note((axes[dim],))
        return before

    def attribute(self, attribute: Attribute) -> int:
        self.attributes.add(attribute)
        self.leaves |= self.code.depends(attribute)
        return super().attribute(attribute)

    def printed(self, paths: tuple[str, ...]) -> Mapping[Any, tuple[Any, Any]]:
        return super().printed(paths)

    def _note(self, axes: Iterable[Axis]) -> None:
        self.leaves |= {leaf.id for leaf in self.code.groups.leaves(axes)} & self.code.sizes.keys()


def drawn(rng: random.Random, size: int) -> int:
    """A width that is none of the usual ones, so that what is equal by chance is rare."""
    return size if size == 1 else rng.randint(max(1, math.ceil(size / 4)), size - 1)


def _flat(result: Any) -> list[Any]:
    found: list[Any] = []
    map_leaves(result, found.append)
    return found


def _named(paths: tuple[str, ...], key: str, before: Any, watch: Watch) -> Any:
    """A named number of a torch.nn module, such as its groups."""

    def read(at: At) -> Any:
        return at.printed(paths).get(key, (before, before))[1]

    if isinstance(before, int):
        return Tracked(before, read, watch)
    return tuple(
        Tracked(each, lambda at, place=place: read(at)[place], watch) for place, each in enumerate(before)
    ) if isinstance(before, tuple | list) else before
