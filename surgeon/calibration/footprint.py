"""The memory for the values of one sample while a graph is run."""

from __future__ import annotations

import math

from torch import Tensor, fx

from surgeon.frontend.trace import Graph
from surgeon.groups.interpreter import last_uses
from surgeon.rules.base import size_of, sizes_of


def bytes_ahead(graph: Graph) -> dict[fx.Node, int]:
    """For each node, the most bytes that the values of one sample take from it on.

    Of the original and the smaller model together, which are run in lockstep.
    """
    sizes: dict[fx.Node, int] = {}
    held = 0
    found: dict[fx.Node, int] = {}
    drop = last_uses(graph.module.graph)
    for node in graph.nodes:
        if node.op != "get_attr":
            value = node.meta.get("val")
            sizes[node] = 4 * sum(map(math.prod, sizes_of(node))) if isinstance(value, tuple | list) else 0
            if isinstance(value, Tensor):
                sizes[node] = max(4, value.element_size()) * math.prod(size_of(node))
            held += sizes[node]
        found[node] = 2 * held // max(graph.batch, 1)
        held -= sum(sizes.pop(dead, 0) for dead in drop[node])
    most = 0
    for node in reversed(found):
        found[node] = most = max(most, found[node])
    return found


def bytes_backwards(graph: Graph) -> int:
    """The bytes of the values of one sample that a backward pass needs."""
    total = sum(math.prod(size_of(node)) for node in graph.nodes if node.op != "get_attr")
    return max(4 * total // max(graph.batch, 1), 1)
