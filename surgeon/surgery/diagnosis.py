"""What the Python code of a model's class asks of the widths: where it derives one from another, and by which call.

The class is run once, whole, on tensors without values and with numbers that remember where they are from (`tracked`).
Each call of torch can then be made again at other widths, alone, with operands of the sizes that the axes predict. A
call that fails then, computes other sizes, or takes another number that is no size, is a `Demand` on the widths of the
groups that it involves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.frontend.isolation import quietly, with_masks_as_given, without_fast_attention
from surgeon.groups.coupling import Groups
from surgeon.rules import Axes, arguments, where
from surgeon.surgery.attributes import (
    NAMED_ALIKE,
    describe_tensors,
    printed_sizes,
    renumbered_size,
    size_pairs,
    takes_sizes,
    with_sizes,
)
from surgeon.surgery.canonical import Value, map_leaves
from surgeon.surgery.operate import own_class
from surgeon.surgery.record import Recorder, Stand
from surgeon.surgery.rewrite import propagate, slim_graph
from surgeon.surgery.tracked import Formula, Operand, TorchCall, Tracked, TrackedFloat, Watch, evaluated, leaves_of


class At:
    """Widths at which formulas are evaluated."""

    def __init__(self, code: Code, widths: Mapping[int, int]) -> None:
        self.code = code
        self.kept = code.groups.kept({leaf: range(width) for leaf, width in widths.items()})
        self._printed: dict[str, Any] = {}

    def size(self, value: Value | None, dim: int, before: int) -> int:
        axes = self.code.axes_of(value)
        return self.kept.width(axes[dim]) if axes is not None and dim < len(axes) else before

    def pairs(self, path: str) -> Any:
        """The sizes of a module's operators, old and new."""
        if path not in self._printed:
            self._printed[path] = printed_sizes(self.code.typed_in.get(path, ()), self.kept)
        return self._printed[path]


@dataclass(frozen=True)
class Demand:
    """Something in the class's code that holds at some widths only: `holds` says whether it does; in words, what."""

    leaves: frozenset[int]
    words: str
    call: TorchCall | None = field(repr=False, default=None)
    branch: tuple[Formula, bool] | None = field(repr=False, default=None)


class Code:
    """A model's class as it ran: its calls of torch and its branches, with the axes of the tensors in them."""

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self.groups = groups
        self.stand = Stand()
        self.sizes = {group.leaf.id: group.size for group in groups}
        self.typed_in = with_sizes(groups)
        self._axes: dict[Value, Axes] = {}
        self._nodes: dict[Value, fx.Node] = {}
        self._order: Mapping[int, int] = {}
        self.calls: list[TorchCall] = []
        self.branches: list[tuple[Formula, bool]] = []
        self._run(model)

    def _run(self, model: nn.Module) -> None:
        groups = self.groups
        kept = groups.kept({})
        _, copies = slim_graph(groups, kept)
        tensors = dict(groups.graph.values)
        as_traced = _Notes(self.stand)
        _, results = propagate(groups, kept, copies, tensors, as_traced)
        candidate, _ = own_class(model, groups, kept, tensors)
        candidate.eval()
        recorder = _Notes(self.stand)
        watch = Watch(recorder)
        args, kwargs = pytree.tree_map(self.stand.of, groups.graph.inputs)
        with (
            quietly(), with_masks_as_given(), without_fast_attention(), torch.no_grad(), self.stand.mode, recorder, watch
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
            paths = [path for path in known_as if path in self.typed_in]
            sizes = {key: pair for path in paths for key, pair in whole.pairs(path).items()}
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
                        vars(module)[key] = _attribute(paths, value, None, watch)
                elif value and all(type(v) is int for v in value) and any(v in olds for v in (*value, tuple(value))):
                    vars(module)[key] = type(value)(
                        _attribute(paths, tuple(value), index, watch) for index in range(len(value))
                    )

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
            numbers = [each for each in leaves_of((call.args, call.kwargs)) if isinstance(each, int | float)]
            if any(not isinstance(each, bool) for each in numbers) or len(numbers) < 1:
                involved = self._involved(call)
                if involved:
                    yield Demand(involved, self._words(call), call)
        for formula, outcome in self.branches:
            involved = self._read(formula)
            if involved:
                yield Demand(involved, "a branch on sizes", branch=(formula, outcome))

    def _involved(self, call: TorchCall) -> frozenset[int]:
        found: set[int] = set()
        for each in leaves_of((call.args, call.kwargs, call.results)):
            value = each.value if isinstance(each, Operand) else each if isinstance(each, Value) else None
            if value is not None:
                found |= {leaf.id for leaf in self.groups.leaves(self.axes_of(value) or ())}
            elif isinstance(each, Tracked | TrackedFloat):
                found |= self._read(each.formula)
        return frozenset(found & self.sizes.keys())

    def _read(self, formula: Formula) -> frozenset[int]:
        """The leaves that a formula reads."""
        seen = _Reader(self)
        try:
            formula(seen)
        except (ArithmeticError, ValueError, TypeError):
            pass
        return frozenset(seen.leaves & self.sizes.keys())

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
    """Notes the leaves that a formula reads."""

    def __init__(self, code: Code) -> None:
        super().__init__(code, {})
        self.leaves: set[int] = set()

    def size(self, value: Value | None, dim: int, before: int) -> int:
        axes = self.code.axes_of(value)
        if axes is not None and dim < len(axes):
            self.leaves |= {leaf.id for leaf in self.code.groups.leaves((axes[dim],))}
        return before

    def pairs(self, path: str) -> Any:
        for node, _ in self.code.typed_in.get(path, ()):
            for each in (node, *node.all_input_nodes):
                for axes in self.code.groups.axes_of(each):
                    self.leaves |= {leaf.id for leaf in self.code.groups.leaves(axes)}
        return super().pairs(path)


class _Notes(Recorder):
    """Notes all calls, also of code whose calls do not tell all that it computes, as they tell its shapes."""

    @property
    def _doubt(self) -> bool:
        return False

    @_doubt.setter
    def _doubt(self, found: bool) -> None:
        pass

    @property
    def notes(self) -> list[Any]:
        """What each call is told from others by."""
        return [(call.operator, call.shapes, call.types) for call in self._calls]


#: How far calls are looked ahead for where two programs go on together, and how many must be the same there.
_AHEAD, _SAME = 60, 3


def aligned(one: list[Any], other: list[Any]) -> dict[int, int]:
    """The calls of one program by place, and those of another that stand for them.

    >>> aligned(["a", "b", "c", "d"], ["a", "x", "c", "d"])
    {0: 0, 2: 2, 3: 3}
    """
    found: dict[int, int] = {}
    at = (0, 0)
    while at[0] < len(one) and at[1] < len(other):
        if one[at[0]] == other[at[1]]:
            found[at[0]] = at[1]
            at = at[0] + 1, at[1] + 1
            continue
        for steps in range(1, 2 * _AHEAD):
            places = ((at[0] + step, at[1] + steps - step) for step in range(steps + 1))
            match = next((place for place in places if _go_on(one, other, *place)), None)
            if match is not None:
                break
        if match is None:
            break
        at = match
    return found


def _go_on(one: list[Any], other: list[Any], i: int, j: int) -> bool:
    ours, theirs = one[i : i + _SAME], other[j : j + _SAME]
    length = min(len(ours), len(theirs))
    return length > 0 and ours[:length] == theirs[:length]


def _flat(result: Any) -> list[Any]:
    found: list[Any] = []
    map_leaves(result, found.append)
    return found


def _named(paths: list[str], key: str, before: Any, watch: Watch) -> Any:
    """A named number of a torch.nn module, such as its groups."""

    def read(at: At) -> Any:
        return next((at.pairs(path)[key][1] for path in paths if key in at.pairs(path)), before)

    if isinstance(before, int):
        return Tracked(before, read, watch)
    return tuple(
        Tracked(each, lambda at, index=index: read(at)[index], watch) for index, each in enumerate(before)
    ) if isinstance(before, tuple | list) else before


def _attribute(paths: list[str], value: Any, index: int | None, watch: Watch) -> Tracked:
    """An attribute that is a size, or one of several."""

    def read(at: At) -> int:
        pairs = size_pairs({key: pair for path in paths for key, pair in at.pairs(path).items()})
        found = renumbered_size(pairs, value)
        return found if index is None else found[index]

    return Tracked(value if index is None else value[index], read, watch)
