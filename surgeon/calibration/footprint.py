"""The memory for the values of one sample while a graph is run."""

from __future__ import annotations

import math

from torch import Tensor, fx

from surgeon.frontend.trace import Graph
from surgeon.groups.interpreter import last_uses
from surgeon.rules.base import size_of, sizes_of


def bytes_per_sample(graph: Graph) -> int:
    """The peak bytes for the values of one sample, in the original and the smaller model together."""
    sizes: dict[fx.Node, int] = {}
    held = most = 0
    drop = last_uses(graph.module.graph)
    for node in graph.nodes:
        if node.op != "get_attr":
            value = node.meta.get("val")
            sizes[node] = 4 * sum(map(math.prod, sizes_of(node))) if isinstance(value, tuple | list) else 0
            if isinstance(value, Tensor):
                sizes[node] = max(4, value.element_size()) * math.prod(size_of(node))
            held += sizes[node]
            most = max(most, held)
        held -= sum(sizes.pop(dead, 0) for dead in drop[node])
    return 2 * most // max(graph.batch, 1)


def bytes_backwards(graph: Graph) -> int:
    """The bytes of the values of one sample that a backward pass needs."""
    total = sum(math.prod(size_of(node)) for node in graph.nodes if node.op != "get_attr")
    return max(4 * total // max(graph.batch, 1), 1)
