"""The operators of a graph as they run: with fused elementwise operators, and sizes as functions of the widths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx

from surgeon.cost.cost import Cost
from surgeon.groups.coupling import Groups
from surgeon.ir.operators import operator_name
from surgeon.ir.polynomial import Terms
from surgeon.latency.fusion import follow
from surgeon.latency.operator_kinds import describe
from surgeon.latency.symbolic_sizes import Sizes, hands_on, leaves_of, source
from surgeon.rules import arguments, where

#: Kinds that a BatchNorm right after them is folded into.
_FOLDS = {"conv", "depthwise", "grouped"}


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator, with the elementwise ones that are fused with it.

    `kind` and `static` describe it independently of widths; `dims` are its sizes as polynomials in the leaves' widths.
    `reads` are its input tensors, in the order of the inputs of its tiny graph; `writes` is the node whose value it
    computes, and `result` that value's sizes. An operator of the kind "view" takes no time: it only needs its tensor in
    the NCHW layout.
    """

    label: str
    kind: str
    static: Mapping[str, Any]
    dims: tuple[Terms, ...] = field(repr=False)
    reads: tuple[fx.Node, ...]
    writes: fx.Node
    result: tuple[Terms, ...] = field(repr=False)

    @cached_property
    def key(self) -> str:
        """A key that is equal for operators that differ in their sizes only."""
        return f"{self.kind} {json.dumps(self.static, sort_keys=True)}"

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        return leaves_of(self.dims)


def operators(groups: Groups, cost: Cost, batch: int = 1) -> list[Operator]:
    """The operators of a graph in the order in which they run, on so many samples if the graph leaves that free.

    Operators that do not depend on the model's inputs are left out: they are computed once, when the model is loaded.
    """
    sizes = Sizes(groups, cost, batch)
    nodes = [node for node in groups.graph.nodes if node in sizes.live]
    order = {node: place for place, node in enumerate(nodes)}
    taken: set[fx.Node] = set()
    found: list[Operator] = []
    for node in nodes:
        if node.op != "call_function" or node in taken or not operator_name(node) or hands_on(node):
            continue
        what = describe(node, arguments(node), sizes)
        if what is None:
            continue
        static, reads, last = dict(what.static), list(what.reads), node
        if what.chained:
            chain, extra, last = follow(node, sizes, order, taken, what.kind in _FOLDS)
            static["chain"] = [*what.first, *chain]
            reads += extra
            last = source(last)
        every = tuple(source(read) for read in reads)
        if any(read.op == "placeholder" for read in every):
            static["input"] = True
        found.append(Operator(where(node), what.kind, static, what.dims, every, last, sizes.of(last) or what.dims))
    return found
