"""The sizes of a graph's tensors as polynomials in the widths, for a batch of one where the batch is free."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import SymInt, Tensor, fx

from surgeon.cost.cost import Cost, Terms, product_of
from surgeon.groups.coupling import Groups

#: Operators that hand on what they are given, in eval mode.
IDENTITIES = {
    "clone", "contiguous", "dropout", "alias", "detach", "lift_fresh_copy", "feature_dropout", "alpha_dropout", "to",
    "type_as", "_to_copy",
}
# Operators that read nothing of a tensor but its shape.
_MADE = {
    "sym_size", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like",
}


class Sizes:
    """What the descriptions of operators ask of a graph."""

    def __init__(self, groups: Groups, cost: Cost) -> None:
        self.groups, self.cost = groups, cost
        self.live = _live(groups)

    def of(self, node: fx.Node) -> tuple[Terms, ...]:
        """A polynomial an axis of the tensor that `node` computes."""
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
    """A size for a batch of one; a fixed one as it is."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def leaves_of(dims: Iterable[Terms]) -> tuple[int, ...]:
    """The leaves of some polynomials, ascending and without repetition."""
    return tuple(sorted({leaf for terms in dims for leaves in terms for leaf in leaves}))


def name_of(node: fx.Node) -> str:
    """The name of a node's ATen operator; empty for what is none."""
    target = node.target
    return target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else ""


def source(node: fx.Node) -> fx.Node:
    """The node that really computes what `node` hands on."""
    while node.op == "call_function" and name_of(node) in IDENTITIES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _live(groups: Groups) -> set[fx.Node]:
    """The nodes whose value depends on the inputs: the others are constants, computed when the model is loaded."""
    live: set[fx.Node] = set()
    for node in groups.graph.nodes:
        if name_of(node) in _MADE:
            continue
        if node.op == "placeholder" or any(read in live for read in node.all_input_nodes):
            live.add(node)
    return live
