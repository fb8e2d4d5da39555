"""The graph of what was recorded, operator by operator, so that the smaller model's own values can be computed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.frontend.trace import Graph, Inputs, batch_size
from surgeon.groups.coupling import Groups
from surgeon.ir.operators import is_a, operator_name
from surgeon.rules import is_random
from surgeon.surgery.canonical import Made, Program, Stream, Value, leaves, map_leaves, values
from surgeon.surgery.rewrite import Predicted, assemble

# They look at how a tensor lies in memory, which at another precision may be otherwise.
_BY_MEMORY = {"as_strided", "as_strided_copy", "_reshape_alias"}

# A graph, and for each operator of the original's graph the one in it that stands for it.
Paired = tuple[Graph, dict[fx.Node, fx.Node]]


def replay(
    groups: Groups, inputs: Inputs, tensors: Mapping[str, Tensor], predicted: Predicted, found: Stream
) -> Paired | None:
    """The graph of the calls that the smaller model made on `inputs`, paired with the original's operators.

    `tensors` are the smaller model's by their names. None where the calls can't be made again one by one.
    """
    assert found.program is not None and predicted.stream.program is not None  # they are recorded
    if any(operator_name(made.operator) in _BY_MEMORY for made in found.program.made):
        return None
    drawing = _Drawing(groups, inputs, tensors, found.program)
    drawing.draw()
    pairs: dict[fx.Node, fx.Node] = {}
    order = predicted.stream.program.order
    for node, result in predicted.results.items():
        if node.op == "get_attr" or (is_a(node, "identity", "dropout") and not is_random(node)):
            continue
        new = drawing.node(result, order)
        if new is not None:
            pairs[node] = new
        elif is_random(node) and node.users:
            return None  # the same numbers can't be drawn for it
    return drawing.graph(), pairs


class _Drawing:
    """The calls that the outputs need, as a graph."""

    def __init__(self, groups: Groups, inputs: Inputs, tensors: Mapping[str, Tensor], program: Program) -> None:
        self._inputs = inputs
        self._program = program
        self._new = fx.Graph()
        self._names = {id(value): groups.graph.canonical[name] for name, value in tensors.items()}
        self._own = {self._names[id(value)]: value for value in tensors.values()}
        self._read: dict[str, str] = {}  # the names of tensors by those of the nodes that read them
        self._nodes: dict[Value, fx.Node] = {}
        self._calls: dict[int, fx.Node] = {}
        self._needed = set(_needed(program))
        # The inputs of the trace as those that stand for them.
        traced = pytree.tree_leaves(groups.graph.inputs)
        given = pytree.tree_leaves(inputs)
        self._same = {Value(-1, id(a)): Value(-1, id(b)) for a, b in zip(traced, given, strict=True)}

    def draw(self) -> None:
        for index, leaf in enumerate(pytree.tree_leaves(self._inputs)):
            node = self._new.placeholder(f"input_{index}")
            if isinstance(leaf, Tensor):
                self._nodes.setdefault(Value(-1, id(leaf)), node)
        asked = {source for source in self._needed if source.call >= 0}
        by_call: dict[int, list[Value]] = {}
        for source in sorted(asked):
            by_call.setdefault(source.call, []).append(source)
        for index, results in sorted(by_call.items()):
            self._draw(index, self._program.made[index], results)
        self._new.output(tuple(self._source(source) for source in self._program.outputs))

    def _draw(self, index: int, made: Made, results: list[Value]) -> None:
        args, kwargs = map_leaves(made.args, self._operand), map_leaves(made.kwargs, self._operand)
        node = self._new.call_function(made.operator, tuple(args), kwargs)
        self._calls[index] = node
        for result in results:
            # The parts at once, so that they are at hand when they are compared.
            part = self._new.call_function(operator.getitem, (node, result.place)) if made.several else node
            self._nodes[result] = part

    def _operand(self, leaf: Any) -> Any:
        return self._source(leaf) if isinstance(leaf, Value) else leaf

    def _source(self, source: Value) -> fx.Node:
        if source not in self._nodes:
            name = self._names[source.place]
            self._nodes[source] = node = self._new.get_attr(name)
            self._read[node.name] = name
        return self._nodes[source]

    def node(self, result: Any, order: Mapping[int, int]) -> fx.Node | None:
        """The node that gives a result of the predicted calls; None where none does as a whole."""
        if isinstance(result, list):
            found = {value.call for value in leaves(result) if isinstance(value, Value)}
            index = self._place(found.pop(), order) if len(found) == 1 else None
            several = index is not None and self._program.made[index].several
            return self._calls.get(index) if index is not None and several else None
        if not isinstance(result, Value):
            return None
        if result.call < 0:
            return self._nodes.get(self._same.get(result, result))
        index = self._place(result.call, order)
        return self._nodes.get(Value(index, result.place)) if index is not None else None

    def _place(self, call: int, order: Mapping[int, int]) -> int | None:
        place = order.get(call, -1)
        return self._program.places[place] if place >= 0 else None

    def graph(self) -> Graph:
        read = set(self._read.values())
        own = {name: value for name, value in self._own.items() if name in read}
        module = assemble(self._new, own, set())
        canonical = {name: name for name in own}
        return Graph(module, self._inputs, self._read, canonical, False, batch_size(self._inputs), own)


def _needed(program: Program) -> Iterator[Value]:
    """The results that the outputs need, and those that these need in their turn."""
    seen: set[Value] = set()
    todo = list(program.outputs)
    done: set[int] = set()
    while todo:
        source = todo.pop()
        if source in seen:
            continue
        seen.add(source)
        yield source
        if source.call >= 0 and source.call not in done:
            done.add(source.call)
            made = program.made[source.call]
            todo += values([made.args, made.kwargs])
