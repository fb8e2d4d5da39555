"""The sizes of a graph's tensors as polynomials in the widths, for a batch of so many samples if that is free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import SymInt, Tensor, fx

from surgeon.cost.cost import Cost
from surgeon.groups.coupling import Groups
from surgeon.ir.operators import is_a
from surgeon.ir.polynomial import Terms, product_of


class Sizes:
    """The sizes of a graph's tensors, and which depend on the model's inputs.

    `batch` is the number of samples of a run if the graph leaves it free, `samples` that in any case. Other sizes that
    the graph leaves free are those of the example inputs.
    """

    def __init__(self, groups: Groups, cost: Cost, batch: int = 1) -> None:
        self.groups, self.cost = groups, cost
        self.live = _live(groups)
        self.samples = batch if groups.graph.dynamic else max(groups.graph.batch, 1)
        self._known = _symbols(groups, batch)

    def of(self, node: fx.Node) -> tuple[Terms, ...]:
        """A polynomial for each axis of the tensor that `node` computes."""
        value, axes = node.meta.get("val"), self.groups.axes.get(node)
        if not isinstance(value, Tensor):
            return ()
        if not isinstance(axes, tuple) or len(axes) != value.dim():
            return tuple({(): float(self.number(size))} for size in value.shape)
        found = []
        for size, axis in zip(value.shape, axes, strict=True):
            terms = self.cost.size(axis)
            if isinstance(size, SymInt):
                terms = product_of([terms, {(): self.number(size) / int(size.node.hint)}])
            found.append(terms)
        return tuple(found)

    def plain(self, node: fx.Node) -> tuple[int, ...]:
        """The sizes at full width."""
        value = node.meta.get("val")
        return tuple(self.number(size) for size in value.shape) if isinstance(value, Tensor) else ()

    def reads(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The tensors that a node reads and that depend on the model's inputs."""
        return tuple(read for read in node.all_input_nodes if read in self.live)

    def number(self, size: int | SymInt) -> int:
        """A size in a run; fixed sizes are unchanged."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        return int(expression.subs({symbol: self._known.get(symbol, 1) for symbol in expression.free_symbols}))


def _symbols(groups: Groups, batch: int) -> dict[Any, int]:
    """The free sizes of the inputs, as symbols, in a run: the first axis of each is the batch."""
    known: dict[Any, int] = {}
    for node in groups.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor):
            for axis, size in enumerate(value.shape):
                if isinstance(size, SymInt) and size.node.expr.is_Symbol:
                    known.setdefault(size.node.expr, int(size.node.hint) if axis else batch)
    return known


def leaves_of(dims: Iterable[Terms]) -> tuple[int, ...]:
    """The leaves of some polynomials, ascending and without repetition."""
    return tuple(sorted({leaf for terms in dims for leaves in terms for leaf in leaves}))


def hands_on(node: fx.Node) -> bool:
    """Whether the operator returns its input in eval mode."""
    return is_a(node, "identity", "dropout", "cast")


def source(node: fx.Node) -> fx.Node:
    """The node that computes the value of `node`, which may only pass it on."""
    while node.op == "call_function" and hands_on(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _live(groups: Groups) -> set[fx.Node]:
    """The nodes whose values depend on the inputs: the others are constants, computed when the model is loaded."""
    live: set[fx.Node] = set()
    for node in groups.graph.nodes:
        if is_a(node, "shape", "uninitialized"):
            continue
        if node.op == "placeholder" or any(read in live for read in node.all_input_nodes):
            live.add(node)
    return live
