"""What the Python code of a model's class asks of the widths: where it derives one from another, and by which call.

The class is run once, whole, on tensors without values and with numbers that remember where they are from (`tracked`).
Each call of torch can then be made again at other widths, alone, with operands of the sizes that the axes predict. A
call that fails then, computes other sizes, or takes another number that is no size, is a `Demand` on the widths of the
groups that it involves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from surgeon.frontend.isolation import quietly, with_masks_as_given, without_fast_attention
from surgeon.frontend.trace import skeleton
from surgeon.groups.coupling import Groups
from surgeon.ir.axes import Axis
from surgeon.rules import Axes, Kept, arguments, where
from surgeon.surgery.again import Again
from surgeon.surgery.aligned import Notes, aligned
from surgeon.surgery.attributes import (
    NAMED_ALIKE,
    Attribute,
    Meaning,
    Meanings,
    callers,
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
from surgeon.surgery.tracked import (
    Branch,
    Formula,
    Operand,
    TorchCall,
    Tracked,
    TrackedFloat,
    Watch,
    leaves_of,
    named_number,
    plain,
)


class At:
    """Widths at which formulas are evaluated."""

    def __init__(self, code: Code, widths: Mapping[int, int]) -> None:
        self.code = code
        self.cut = {leaf for leaf, width in widths.items() if width < code.sizes[leaf]}
        self.kept = code.groups.kept({leaf: range(widths[leaf]) for leaf in self.cut})
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
    branch: Branch | None = field(repr=False, default=None)


class Code:
    """A model's class as it ran: its calls of torch and its branches, with the axes of the tensors in them.

    `meanings` says of attributes that hold one of several equal sizes which one it is, where that was found out.
    """

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self.groups = groups
        self.stand = Stand()
        self.sizes = {group.leaf.id: group.size for group in groups}
        self.operators = with_sizes(groups)
        self.meanings: Meanings = {}
        self._axes: dict[Value, Axes] = {}
        self._nodes: dict[Value, fx.Node] = {}
        self._order: Mapping[int, int] = {}
        self._made_by: dict[int, fx.Node] = {}
        self.attributes: list[Attribute] = []
        self._dependence: dict[tuple[Attribute, Meaning | None], frozenset[int]] = {}
        self._demands: dict[Any, list[Demand]] = {}
        self._fractions: dict[int, list[float]] = {}
        self.calls: list[TorchCall] = []
        self.branches: list[Branch] = []
        self.whole = At(self, {})
        self._again = Again(self.axes_of, self.whole, lambda: self.stand.mode)
        self._run(model)

    def _run(self, model: nn.Module) -> None:
        groups = self.groups
        kept = groups.kept({})
        _, copies = slim_graph(groups, kept)
        tensors = dict(groups.graph.values)
        as_traced = Notes(self.stand)
        _, results = propagate(groups, kept, copies, tensors, as_traced)
        # In eval mode from the start: a parametrization may write into its buffers when its weight is looked at.
        candidate, _ = own_class(skeleton(model).eval(), groups, kept, tensors)
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
                    self._made_by[value.call] = node
        for name, axes in groups.tensors.items():
            self._axes[Value(-1, id(groups.graph.values[name]))] = axes

    def _track(self, candidate: nn.Module, watch: Watch) -> None:
        """Let the attributes that are rewritten with the widths be numbers with formulas."""
        names: dict[nn.Module, list[str]] = {}
        for name, module in candidate.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        for module, known_as in names.items():
            paths = tuple(path for path in callers(module, known_as) if path in self.operators)
            sizes = self.whole.printed(paths)
            named = {key: named_number(paths, key, pair[0], watch) for key, pair in sizes.items() if key in NAMED_ALIKE}
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

    def axes_of(self, value: Value | None) -> Axes | None:
        """The axes of a tensor, where they are known."""
        return self._axes.get(self._in_graph(value)) if value is not None else None

    def node_of(self, value: Value | None) -> fx.Node | None:
        """The operator of the graph that computes a tensor."""
        return self._nodes.get(self._in_graph(value)) if value is not None else None

    def _in_graph(self, value: Value) -> Value:
        return Value(self._order.get(value.call, -2), value.place) if value.call >= 0 else value

    @property
    def demands(self) -> list[Demand]:
        """What may not hold at other widths, by the meanings so far."""
        key = tuple(sorted(self.meanings.items()))
        if key not in self._demands:
            self._demands[key] = list(self._all_demands())
        return self._demands[key]

    def _all_demands(self) -> Iterator[Demand]:
        for call in self.calls:
            leaves = list(leaves_of((call.args, call.kwargs, call.results)))
            numbers = any(isinstance(each, int | float) and not isinstance(each, bool) for each in leaves)
            if numbers or any(self._left_to_torch(call)):
                reader = _Reader(self)
                for each in leaves:
                    reader.read(each)
                if reader.leaves:
                    yield Demand(frozenset(reader.leaves), frozenset(reader.attributes), self._words(call), call)
        for branch in self.branches:
            reader = _Reader(self)
            reader.read_formula(branch.formula)
            if reader.leaves:
                words = f"a comparison in {branch.line}"
                yield Demand(frozenset(reader.leaves), frozenset(reader.attributes), words, branch=branch)

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

    def unmet(self, demands: Iterable[Demand], at: At) -> list[Demand]:
        """Those demands that are not met at some widths: the code does not do there what the axes say."""
        with self.apart():
            return [each for each in demands if not self._holds(each, at)]

    def met(self, demands: Iterable[Demand], at: At) -> bool:
        """Whether all demands are met at some widths."""
        with self.apart():
            return all(self._holds(each, at) for each in demands)

    def telling(self, demands: Iterable[Demand]) -> list[Demand]:
        """Those demands that the model as it is meets: what can't be run apart tells nothing."""
        with self.apart():
            return [each for each in demands if each.call is None or self._as_predicted(each.call, self.whole)]

    @contextmanager
    def apart(self) -> Iterator[None]:
        """A block in which calls are made again; around many questions it saves the time to start one for each."""
        with quietly(), without_fast_attention(), torch.no_grad():
            yield

    @contextmanager
    def understood_as(self, meanings: Meanings) -> Iterator[None]:
        """A block in which attributes mean this."""
        before, self.meanings = self.meanings, dict(meanings)
        try:
            yield
        finally:
            self.meanings = before

    def _holds(self, demand: Demand, at: At) -> bool:
        if not demand.leaves & at.cut:
            return True
        if demand.call is not None:
            return self._as_predicted(demand.call, at)
        assert demand.branch is not None
        try:
            return bool(demand.branch.formula(at)) == demand.branch.outcome
        except (ArithmeticError, ValueError):
            return False

    def _as_predicted(self, call: TorchCall, at: At) -> bool:
        expected = self._expected(call, at)
        if expected is None:  # a constant, of which the graph has the value
            return not any(self._changes(each, at) for each in leaves_of((call.args, call.kwargs)))
        if not self._same_numbers(call, at):
            return False
        found = self._again(call, at)
        if found is None:
            return False
        if found[1] and id(call) not in self._fractions:
            whole = self._again(call, self.whole)
            self._fractions[id(call)] = found[1] if whole is None else whole[1]
        if found[1] != self._fractions.get(id(call), []):
            return False  # torch's own code takes a number from sizes, such as a scale
        return len(found[0]) == len(expected) and all(
            want is None or want == have for want, have in zip(expected, found[0], strict=True)
        )

    def _expected(self, call: TorchCall, at: At) -> list[tuple[int, ...] | None] | None:
        """The sizes of the results as the axes say; None where nothing is known of them."""
        axes = [self.axes_of(each) if isinstance(each, Value) else None for each in leaves_of(call.results)]
        if all(each is None for each in axes):
            return None
        return [tuple(map(at.kept.width, each)) if each is not None else None for each in axes]

    def _same_numbers(self, call: TorchCall, at: At) -> bool:
        """Whether the numbers that are no sizes stay: a scale that the code computes from widths does not."""
        if any(print_(at.kept) is not None for print_ in self._left_to_torch(call)):
            return False  # it is another number now
        nodes = self._inside(call)
        prints = any(self.groups.typed[node].args for node in nodes)
        for each in leaves_of((call.args, call.kwargs)):
            if (isinstance(each, TrackedFloat) or (nodes and not prints)) and self._changes(each, at):
                return False
        return True

    def _inside(self, call: TorchCall) -> set[fx.Node]:
        """The operators of the graph that a call is made of."""
        inside = (self._made_by.get(self._order.get(place, -1)) for place in call.made)
        return {node for node in inside if node is not None and isinstance(node.target, torch._ops.OpOverload)}

    def _left_to_torch(self, call: TorchCall) -> Iterator[Callable[[Kept], Any]]:
        """What prints the numbers, such as attention's scale, that torch takes of sizes where the code gives none."""
        for node in self._inside(call):
            given = arguments(node)
            for name, print_ in self.groups.typed[node].args.items():
                if name in given and given[name] is None:
                    yield print_

    @staticmethod
    def _changes(number: Any, at: At) -> bool:
        return isinstance(number, Tracked | TrackedFloat) and bool(number.formula(at) != plain(number))


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
        return self.code.whole.printed(paths)

    def _note(self, axes: Iterable[Axis]) -> None:
        self.leaves |= {leaf.id for leaf in self.code.groups.leaves(axes)} & self.code.sizes.keys()


def _flat(result: Any) -> list[Any]:
    found: list[Any] = []
    map_leaves(result, found.append)
    return found
