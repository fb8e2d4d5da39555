"""Runs the graphs of the original and of the smaller model on all calibration batches, one operator after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.frontend.trace import Graph, Inputs
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import last_uses
from surgeon.rules import Axes, Kept
from surgeon.rules.base import size_of, sizes_of

_HALF = {torch.float16, torch.bfloat16}


class Network:
    """The values that later operators still need, for every batch.

    `nodes` gives for each node of the original graph the one to run, `tensor` the tensor that a `get_attr` node of the
    original reads; `constants`, by the node that is run, are taken as they are instead. Half precision is computed in
    single.
    """

    def __init__(
        self, nodes: Mapping[fx.Node, fx.Node], tensor: Callable[[fx.Node], Tensor | None], batches: Sequence[Inputs],
        constants: Mapping[fx.Node, Any] | None = None,
    ) -> None:
        self.values: list[dict[fx.Node, Any]] = [{} for _ in batches]
        self._nodes = nodes
        self._originals = {run: node for node, run in nodes.items()}
        self._tensor = tensor
        self._constants: dict[fx.Node, Any] = dict(constants or {})
        self._inputs = [iter(pytree.tree_leaves(batch)) for batch in batches]

    def value(self, node: fx.Node, batch: int) -> Any:
        """The value of a node of the original graph."""
        return self._read(self._nodes[node], batch)

    def _read(self, run: fx.Node, batch: int) -> Any:
        if run.op != "get_attr":
            return self.values[batch][run]
        if run not in self._constants:
            self._constants[run] = working(self._tensor(self._originals[run]))
        return self._constants[run]

    def compute(self, node: fx.Node, batch: int, instead: Mapping[fx.Node, Any] | None = None) -> Any:
        """The node's value from those of its operands; `instead` gives other values for some operands."""
        run = self._nodes[node]
        if run.op == "placeholder":
            return working(next(self._inputs[batch]))
        other = {self._nodes[operand]: value for operand, value in (instead or {}).items()}

        def value(operand: fx.Node) -> Any:
            return other[operand] if operand in other else self._read(operand, batch)

        args, kwargs = fx.node.map_arg((run.args, run.kwargs), value)
        args, kwargs = pytree.tree_map(_type, args), pytree.tree_map(_type, kwargs)
        if run.target is torch.ops.aten.view.default:
            return args[0].reshape(*args[1:])  # at other widths or types, memory may be laid out in another way
        return run.target(*args, **kwargs)  # type: ignore[operator]

    def outputs(self, node: fx.Node, batch: int) -> list[Tensor]:
        """The floating tensors that the original's output `node` hands out."""
        operands = (leaf for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node))
        values = [self.value(operand, batch) for operand in operands]
        return [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]

    def keep(self, node: fx.Node, batch: int, value: Any) -> None:
        """Remember a node's value."""
        if node.users:
            self.values[batch][self._nodes[node]] = value

    def drop(self, nodes: Sequence[fx.Node]) -> None:
        """Forget values that nobody needs any more."""
        for node in nodes:
            run = self._nodes.get(node)
            if run is None:
                continue
            self._constants.pop(run, None)
            for values in self.values:
                values.pop(run, None)

    def refresh(self) -> None:
        """Read the model's tensors anew."""
        self._constants.clear()


def working(value: Any) -> Any:
    """A tensor in a type to compute in: single precision for half, else as it is."""
    if isinstance(value, Tensor):
        return value.detach().float() if value.dtype in _HALF else value.detach()
    return value


def _type(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALF else value


def bytes_per_sample(graph: Graph) -> int:
    """What the values of one sample take at most, in the original and the smaller model together."""
    sizes: dict[fx.Node, int] = {}
    held = most = 0
    drop = last_uses(graph)
    for node in graph.nodes:
        if node.op != "get_attr":
            value = node.meta.get("val")
            several = sizes_of(node) if isinstance(value, tuple | list) else []
            shapes = [size_of(node)] if isinstance(value, Tensor) else several
            sizes[node] = sum(max(4, _item(value)) * torch.Size(shape).numel() for shape in shapes)
            held += sizes[node]
            most = max(most, held)
        held -= sum(sizes.pop(dead, 0) for dead in drop.get(node, ()))
    return 2 * most // max(graph.batch, 1)


def bytes_backwards(graph: Graph) -> int:
    """What the values of one sample take that a step backwards needs."""
    total = sum(math.prod(size_of(node)) for node in graph.nodes if node.op != "get_attr")
    return max(4 * total // max(graph.batch, 1), 1)


def _item(value: Any) -> int:
    return value.element_size() if isinstance(value, Tensor) else 4


def gathered(value: Any, axes: Axes | list[Axes], kept: Kept) -> Any:
    """`value` of the original at the positions that the smaller model has."""
    if isinstance(value, tuple | list) and isinstance(axes, list):
        return [gathered(each, own, kept) for each, own in zip(value, axes, strict=False)]
    if not isinstance(value, Tensor) or not isinstance(axes, tuple):
        return value
    for dim, axis in enumerate(axes):
        if kept.changed(axis):
            value = value.index_select(dim, torch.as_tensor(kept.positions(axis), device=value.device))
    return value


def changed(groups: Groups, kept: Kept, tensor: Callable[[fx.Node], Tensor | None]) -> set[fx.Node]:
    """The nodes whose values may differ in the smaller model from the original's at the kept positions."""
    graph: Graph = groups.graph
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            name = graph.tensors.get(node.name)
            own, axes = tensor(node), groups.axes[node]
            cut = isinstance(axes, tuple) and any(kept.changed(axis) for axis in axes)
            if name is not None and own is not None and (cut or not torch.equal(own, graph.tensor(name))):
                found.add(node)
        elif any(operand in found for operand in node.all_input_nodes):
            found.add(node)
    return found
