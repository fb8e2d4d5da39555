"""Runs a traced graph node by node, at a given precision, and frees each value after its last use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.frontend.functionalize import apart
from surgeon.frontend.trace import Graph
from surgeon.ir.operators import is_a
from surgeon.rules import is_random
from surgeon.support.process_wide import process_wide

_VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}
_HALF = {torch.float16, torch.bfloat16}
_REDUCED = {torch.float32, *_HALF}
_COMPLEX = {torch.complex64, torch.complex32}


def single(value: Any) -> Any:
    """Half-precision tensors and dtypes as single precision; everything else unchanged."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALF else value


def double(value: Any) -> Any:
    """Floating and complex tensors and dtypes at double precision; everything else unchanged."""
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return value.detach().to(torch.complex128 if value.is_complex() else torch.float64)
    if isinstance(value, torch.dtype) and value in _REDUCED | _COMPLEX:
        return torch.complex128 if value in _COMPLEX else torch.float64
    return value


@process_wide
def _double_by_default() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def precisely() -> Iterator[None]:
    """Without gradients, and with double precision as torch's default dtype, which all threads share."""
    with _double_by_default(), torch.no_grad():
        yield


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node: the nodes whose values are not needed after it."""
    uses = fx.Interpreter(nn.Module(), graph=graph).user_to_last_uses
    return {node: [*uses.get(node, ()), *(() if node.users else (node,))] for node in graph.nodes}


class Interpreter:
    """Computes one node after the other, on one batch of inputs or on several in lockstep.

    Iterating yields the nodes that compute something, in order, the output last. For the current node, the values of
    its operands are available, and `compute` or `set` gives it its own; values that are no longer needed are freed when
    the next node is asked for. Inputs and the model's tensors have no gradients; the latter are converted when they are
    first needed. Random numbers are the same in each run of the graph; the user's generators stay as they are.

    Args:
        traced: the model's graph.
        batches: inputs of it, as pytrees.
        parameter: maps the name of a tensor of the model, and the tensor, to the tensor to use.
        precision: applied to each input, tensor, and argument of an operator.
        graph: a graph to run in place of the model's own, which reads the same tensors.

    >>> from surgeon.frontend.trace import trace
    >>> graph = trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(1, 2))
    >>> run = Interpreter(graph, (torch.ones(4, 2),), parameter=lambda name, value: torch.ones_like(value))
    >>> for node in run:
    ...     value = run.compute(node)
    ...     print(node.op, value[0].tolist())
    placeholder [1.0, 1.0]
    call_function [3.0, 3.0, 3.0]
    call_function [3.0, 3.0, 3.0]
    output [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0], [3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """

    def __init__(
        self, traced: Graph, *batches: Any, parameter: Callable[[str, Tensor], Tensor] | None = None,
        precision: Callable[[Any], Any] = single, graph: fx.Graph | None = None,
    ) -> None:
        self._traced = traced
        self._graph = graph if graph is not None else traced.module.graph
        self._parameter = parameter
        self._precision = precision
        self._last_uses = last_uses(self._graph)
        self._places = {node: place for place, node in enumerate(self._graph.nodes)}
        inputs = [node for node in self._graph.nodes if node.op == "placeholder"]
        self._inputs = [dict(zip(inputs, pytree.tree_leaves(batch), strict=False)) for batch in batches]
        self._values: list[dict[fx.Node, Any]] = [{} for _ in batches]
        self._tensors: dict[fx.Node, Any] = {}

    def __iter__(self) -> Iterator[fx.Node]:
        for node in self._graph.nodes:
            if node.op != "get_attr":
                yield node
            self.drop(node)

    def drop(self, node: fx.Node) -> Sequence[fx.Node]:
        """Free the values whose last use this is, before the next node is asked for; returns their nodes."""
        for dead in self._last_uses[node]:
            for values in (self._tensors, *self._values):
                values.pop(dead, None)
        return self._last_uses[node]

    def holds(self, node: fx.Node, batch: int = 0) -> bool:
        """Whether the value of a node is at hand."""
        return node.op == "get_attr" or node in self._values[batch]

    def value(self, node: fx.Node, batch: int = 0) -> Any:
        """The value of an operand of the current node."""
        if node.op != "get_attr":
            return self._values[batch][node]
        if node not in self._tensors:
            self._tensors[node] = self._tensor(node)
        return self._tensors[node]

    def operands(self, node: fx.Node) -> dict[fx.Node, Any]:
        return {operand: self.value(operand) for operand in node.all_input_nodes}

    def compute(self, node: fx.Node, batch: int = 0) -> Any:
        """Compute, keep and return the value of the current node; of the output, the list of its tensors."""
        if node.op == "placeholder":
            value = self._precision(pytree.tree_map_only(Tensor, Tensor.detach, self._inputs[batch][node]))
        else:
            value = self.evaluate(node, batch)
        self.set(node, value, batch)
        return value

    def set(self, node: fx.Node, value: Any, batch: int = 0) -> None:
        self._values[batch][node] = value

    def evaluate(self, node: fx.Node, batch: int = 0, instead: Mapping[fx.Node, Any] | None = None) -> Any:
        """What an operator computes; values of some of its operands may be given `instead` of their own."""
        given = instead or {}

        def operand(each: fx.Node) -> Any:
            return given[each] if each in given else self.value(each, batch)

        args, kwargs = pytree.tree_map(self._precision, fx.node.map_arg((node.args, node.kwargs), operand))
        if node.op == "output":
            return [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if node.target in _VIEWS:
            return args[0].reshape(*args[1:])  # at other sizes or dtypes, kernels lay out memory differently
        if is_random(node):
            devices = {each.device for each in pytree.tree_leaves(args) if isinstance(each, Tensor) and each.is_cuda}
            with torch.random.fork_rng(devices=list(devices)):
                torch.manual_seed(self._places[node])
                return node.target(*args, **kwargs)  # type: ignore[operator]
        value = node.target(*apart(node.target, args), **kwargs)  # type: ignore[operator]
        # Uninitialized memory would differ from run to run.
        return value.zero_() if is_a(node, "uninitialized") else value

    def run(self) -> list[Tensor]:
        """Compute all nodes on the first batch; returns the tensors of the output."""
        value: Any = []
        for node in self:
            value = self.compute(node)
        return list(value)

    def refresh(self) -> None:
        """Forget the model's tensors that were read, after some have been written to."""
        self._tensors.clear()

    def _tensor(self, node: fx.Node) -> Any:
        name = self._traced.tensors.get(node.name)
        if name is None:
            return None
        value = self._traced.tensor(name).detach()
        if self._parameter is not None:
            value = self._parameter(name, value)
        if not torch.is_grad_enabled():
            value = value.detach()  # kernels depend on requires_grad, even where no gradient is taken
        return self._precision(value)  # converted last: copies before it take less memory


def floating(values: Sequence[Tensor]) -> list[Tensor]:
    """The floating tensors of an output."""
    return [value for value in values if value.is_floating_point()]
