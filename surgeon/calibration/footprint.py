"""The memory that the values of one sample take while a graph is run."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx

from surgeon.frontend.trace import Graph
from surgeon.groups.interpreter import last_uses
from surgeon.rules.base import size_of, sizes_of


def bytes_per_sample(graph: Graph) -> int:
    """What the values of one sample take at most, in the original and the smaller model together."""
    sizes: dict[fx.Node, int] = {}
    held = most = 0
    drop = last_uses(graph.module.graph)
    for node in graph.nodes:
        if node.op != "get_attr":
            value = node.meta.get("val")
            several = sizes_of(node) if isinstance(value, tuple | list) else []
            shapes = [size_of(node)] if isinstance(value, Tensor) else several
            sizes[node] = sum(max(4, _item(value)) * math.prod(shape) for shape in shapes)
            held += sizes[node]
            most = max(most, held)
        held -= sum(sizes.pop(dead, 0) for dead in drop[node])
    return 2 * most // max(graph.batch, 1)


def bytes_backwards(graph: Graph) -> int:
    """What the values of one sample take that a step backwards needs."""
    total = sum(math.prod(size_of(node)) for node in graph.nodes if node.op != "get_attr")
    return max(4 * total // max(graph.batch, 1), 1)


def _item(value: Any) -> int:
    return value.element_size() if isinstance(value, Tensor) else 4
