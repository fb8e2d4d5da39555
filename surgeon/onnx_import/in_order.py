"""A gather of all values of a tensor in their order, which some exporters write in place of a reshape.

torch.onnx does so with `as_strided`: it flattens the tensor, and reads it at numbers that it works out from sizes. By
these numbers no axis could be told from another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgeon.onnx_import.nodes import Graph, Node, live
from surgeon.onnx_import.table import INTERNAL
from surgeon.onnx_import.tensors import Constant
from surgeon.onnx_import.values import Numbers, normalized

#: The most elements of a table of numbers that is looked into.
MOST = 1 << 20


@dataclass(frozen=True)
class _Places:
    """Numbers that are sums over axes of a position times a stride; a size is a number, or the value that it is."""

    sizes: tuple[int | str, ...]
    strides: tuple[int, ...]


def read_in_order(graph: Graph) -> Graph:
    """The graph with what reads all of a tensor in order as an operator of its own, without what made the numbers."""
    known = dict(graph.constants)
    makers: dict[str, Node] = {}
    nodes: list[Node] = []
    sizes: dict[str, Constant] = {}
    for node in graph.nodes:
        value = node.attributes.get("value")
        if node.kind == "Constant" and isinstance(value, Constant) and len(node.outputs) == 1:
            known[node.outputs[0]] = value
        places = _read(node, makers, known)
        if places is None:
            nodes.append(node)
        else:
            name = f"{node.outputs[0]}\0"  # which no value of a file is called
            first, *rest = places.sizes
            whole = Numbers.of([first if isinstance(first, int) else -1, *rest], torch.int64)
            sizes[name] = Constant(name, whole, known[node.inputs[1]].folder if node.inputs[1] in known else Path())
            inputs = [makers[node.inputs[0]].inputs[0], name, *([] if isinstance(first, int) else [first])]
            nodes.append(Node("InOrder", INTERNAL, 1, inputs, list(node.outputs), {}, node.place))
        makers.update(dict.fromkeys(node.outputs, node))
    if not sizes:
        return graph
    return replace(graph, nodes=live(nodes, graph.outputs), constants={**graph.constants, **sizes})


def _read(node: Node, makers: Mapping[str, Node], known: Mapping[str, Constant]) -> _Places | None:
    """The places that a gather reads of a flattened tensor, if these are all in order, one after the other."""
    if node.kind != "Gather" or node.domain or len(node.inputs) != 2 or node.attributes.get("axis", 0) != 0:
        return None
    flat = makers.get(node.inputs[0])
    if flat is None or flat.kind != "Reshape" or flat.domain or len(flat.inputs) != 2 or len(node.outputs) != 1:
        return None
    flattened = _small(known.get(flat.inputs[1]))
    places = _places(node.inputs[1], makers, known)
    if flattened is None or flattened.reshape(-1).tolist() != [-1] or places is None or len(places.sizes) < 2:
        return None
    expected = 1
    for size, stride in reversed([*zip(places.sizes[1:], places.strides[1:], strict=True)]):
        if isinstance(size, str) or (size > 1 and stride != expected):
            return None
        expected *= size
    return places if places.sizes[0] == 1 or places.strides[0] == expected else None


def _small(constant: Constant | None) -> np.ndarray | None:
    """The integers of a constant, if it is one of not too many."""
    if constant is None or constant.floating or constant.dtype.is_complex or constant.count > MOST:
        return None
    if isinstance(constant.held, Numbers):
        return constant.held.array.astype(np.int64) if constant.held.plain else None
    return constant.tensor().numpy().astype(np.int64)


def _listed(numbers: np.ndarray | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(numbers.reshape(-1).tolist())


def _places(name: str, makers: Mapping[str, Node], known: Mapping[str, Constant], depth: int = 0) -> _Places | None:
    if name in known:
        return _of_table(_small(known[name]))
    node = makers.get(name)
    if node is None or node.domain or depth > 32:
        return None
    inputs = node.inputs
    match node.kind, len(inputs):
        case "Range", 3:
            first, step = _small(known.get(inputs[0])), _small(known.get(inputs[2]))
            if first is None or step is None or first.size != 1 or step.size != 1 or first.item() != 0:
                return None
            return _Places((inputs[1],), (1,)) if step.item() == 1 else None
        case "Mul", 2:
            for one, other in (inputs, inputs[::-1]):
                factor = _small(known.get(other))
                if factor is not None and factor.size == 1 and (found := _places(one, makers, known, depth + 1)):
                    return replace(found, strides=tuple(each * int(factor.item()) for each in found.strides))
        case "Unsqueeze", 1 | 2:
            axes = node.attributes.get("axes") if len(inputs) == 1 else _listed(_small(known.get(inputs[1])))
            found = _places(inputs[0], makers, known, depth + 1)
            return _unsqueezed(found, axes) if found is not None and isinstance(axes, tuple) else None
        case "Add", 2:
            pair = [_places(each, makers, known, depth + 1) for each in inputs]
            return None if pair[0] is None or pair[1] is None else _sum(pair[0], pair[1])
    return None


def _of_table(table: np.ndarray | None) -> _Places | None:
    if table is None or not table.size or table.reshape(-1)[0] != 0:
        return None
    strides = []
    for axis, size in enumerate(table.shape):
        second = tuple(int(each == axis) for each in range(table.ndim))
        strides.append(int(table[second]) if size > 1 else 0)
    made = np.zeros((1,) * table.ndim, np.int64)
    for axis, (size, stride) in enumerate(zip(table.shape, strides, strict=True)):
        shape = [1] * table.ndim
        shape[axis] = size
        made = made + (np.arange(size) * stride).reshape(shape)
    return _Places(table.shape, tuple(strides)) if np.array_equal(made, table) else None


def _unsqueezed(places: _Places, axes: tuple[Any, ...]) -> _Places | None:
    rank = len(places.sizes) + len(axes)
    if not all(isinstance(axis, int) and -rank <= axis < rank for axis in axes):
        return None
    new = {normalized(axis, rank) for axis in axes}
    if len(new) != len(axes):
        return None
    pairs = iter(zip(places.sizes, places.strides, strict=True))
    made = [(1, 0) if axis in new else next(pairs) for axis in range(rank)]
    return _Places(tuple(size for size, _ in made), tuple(stride for _, stride in made))


def _sum(a: _Places, b: _Places) -> _Places | None:
    rank = max(len(a.sizes), len(b.sizes))
    sizes: list[int | str] = []
    strides: list[int] = []
    for axis in range(-rank, 0):
        pair = [
            (each.sizes[axis], each.strides[axis]) if -axis <= len(each.sizes) else (1, 0) for each in (a, b)
        ]
        wide = [(size, stride) for size, stride in pair if size != 1]
        if len({size for size, _ in wide}) > 1:
            return None
        sizes.append(wide[0][0] if wide else 1)
        strides.append(sum(stride for _, stride in wide))
    return _Places(tuple(sizes), tuple(strides))
