"""Runs a traced graph in float64, converting tensors as they are needed and dropping values after their last use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.frontend.trace import Graph
from surgeon.rules import is_random

_UNINITIALISED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_REDUCED = {torch.float32, torch.float16, torch.bfloat16}
_COMPLEX = {torch.complex64, torch.complex32}


def double(value: Any) -> Any:
    """Floating and complex tensors, and the names of their types, at double precision; everything else as it is."""
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return value.detach().to(torch.complex128 if value.is_complex() else torch.float64)
    if isinstance(value, torch.dtype) and value in _REDUCED | _COMPLEX:
        return torch.complex128 if value in _COMPLEX else torch.float64
    return value


def _is_uninitialised(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._opname in _UNINITIALISED


def last_uses(graph: Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node: the nodes whose values nobody needs after it."""
    done: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        for operand in (*node.all_input_nodes, node):
            if operand not in seen:
                seen.add(operand)
                done.setdefault(node, []).append(operand)
    return done


@contextmanager
def precisely() -> Iterator[None]:
    """Without gradients, and with new floating tensors at double precision."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(default)


class Runner:
    """Computes one node after the other; `values` holds what later nodes still need.

    `parameter` may change a tensor before it is used, given its name.
    """

    def __init__(self, graph: Graph, inputs: Any, parameter: Callable[[str, Tensor], Tensor] | None = None) -> None:
        self.graph = graph
        self.values: dict[fx.Node, Any] = {}
        self._inputs: Iterator[Any] = iter(pytree.tree_leaves(inputs))
        self._parameter = parameter
        self._drop = last_uses(graph)
        self._places = {node: place for place, node in enumerate(graph.nodes)}

    def value(self, node: fx.Node) -> Any:
        """The value of an operand; a tensor of the model is converted when it is first needed."""
        if node not in self.values and node.op == "get_attr":
            self.values[node] = self._tensor(node)
        return self.values[node]

    def _tensor(self, node: fx.Node) -> Any:
        name = self.graph.tensors.get(node.name)
        if name is None:
            return None
        value = self.graph.tensor(name)
        # Changed before it is converted: the copies that this takes are smaller.
        return double(self._parameter(name, value) if self._parameter else value)

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The values of the node's arguments, floating types at double precision."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value)
        return pytree.tree_map(double, args), pytree.tree_map(double, kwargs)

    def compute(self, node: fx.Node) -> Any:
        """The node's value, from the values of its operands."""
        match node.op:
            case "placeholder":
                return double(next(self._inputs))
            case "output":
                return [value for value in pytree.tree_leaves(self.arguments(node)) if isinstance(value, Tensor)]
            case _:
                args, kwargs = self.arguments(node)
                if node.target is torch.ops.aten.view.default:
                    return args[0].reshape(*args[1:])  # kernels lay out float64 in other ways than float32
                if is_random(node):
                    return self._drawn(node, args, kwargs)
                value = node.target(*args, **kwargs)  # type: ignore[operator]
                # Memory without values would differ from run to run.
                return value.zero_() if _is_uninitialised(node) else value

    def _drawn(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Random numbers, the same each time that the graph is run; the user's generators stay as they are."""
        devices = {value.device for value in pytree.tree_leaves(args) if isinstance(value, Tensor) and value.is_cuda}
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(self._places[node])
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def keep(self, node: fx.Node, value: Any) -> None:
        """Remember the node's value, and forget those that nobody needs any more."""
        if node.users:
            self.values[node] = value
        for dead in self._drop.get(node, ()):
            self.values.pop(dead, None)
