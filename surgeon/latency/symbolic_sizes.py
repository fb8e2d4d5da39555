"""The sizes of a graph's tensors as polynomials in the widths, for a batch of one if the batch size is free."""

from __future__ import annotations

from collections.abc import Iterable

from torch import SymInt, Tensor, fx

from surgeon.cost.cost import Cost
from surgeon.groups.coupling import Groups
from surgeon.ir.operators import is_a
from surgeon.ir.polynomial import Terms, product_of


class Sizes:
    """The sizes of a graph's tensors, and which depend on the model's inputs."""

    def __init__(self, groups: Groups, cost: Cost) -> None:
        self.groups, self.cost = groups, cost
        self.live = _live(groups)

    def of(self, node: fx.Node) -> tuple[Terms, ...]:
        """A polynomial for each axis of the tensor that `node` computes."""
        value, axes = node.meta.get("val"), self.groups.axes.get(node)
        if not isinstance(value, Tensor):
            return ()
        if not isinstance(axes, tuple) or len(axes) != value.dim():
            return tuple({(): float(at_one(size))} for size in value.shape)
        found = []
        for size, axis in zip(value.shape, axes, strict=True):
            terms = self.cost.size(axis)
            if isinstance(size, SymInt):
                terms = product_of([terms, {(): at_one(size) / int(size.node.hint)}])
            found.append(terms)
        return tuple(found)

    def plain(self, node: fx.Node) -> tuple[int, ...]:
        """The sizes at full width."""
        value = node.meta.get("val")
        return tuple(at_one(size) for size in value.shape) if isinstance(value, Tensor) else ()

    def reads(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The tensors that a node reads and that depend on the model's inputs."""
        return tuple(read for read in node.all_input_nodes if read in self.live)


def at_one(size: int | SymInt) -> int:
    """A size for a batch of one; fixed sizes are unchanged."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


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
