"""Dataflow analysis of a network, element by element: what is constant, and what the outputs depend on."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.frontend.trace import Graph
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import Interpreter, double, precisely
from surgeon.rules.base import is_random, size_of
from surgeon.sparsity.influence import Influence, Operands, influence
from surgeon.verification.check import checked_inputs

#: Called with each operator once its operands and its result are known.
Look = Callable[[Operands], None]


def gather(groups: Groups, look: Look) -> dict[fx.Node, Any]:
    """A forward pass for what is constant, then a backward pass for what is read; returns masks of the latter by node.

    `look` is called with each operator in the forward pass, while the values of its operands are available. Nothing is
    read of nodes without a mask; nodes with several results have a dict of masks by index.
    """
    traced: dict[fx.Node, tuple[Operands, Influence]] = {}
    _forward(groups, look, traced)
    return _backward(groups, traced)


def of_weights(graph: Graph) -> set[fx.Node]:
    """The operators that compute from the model's tensors alone, such as a weight under a mask or a norm."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        operands = node.all_input_nodes
        computes = isinstance(node.target, torch._ops.OpOverload) and not is_random(node)
        if computes and operands and all(each.op == "get_attr" or each in found for each in operands):
            found.add(node)
    return found


def _forward(groups: Groups, look: Look, traced: dict[fx.Node, tuple[Operands, Influence]]) -> None:
    graph = groups.graph
    run = Interpreter(graph, checked_inputs(graph), precision=double)
    unknown: dict[fx.Node, Any] = {}
    weights = of_weights(graph)
    with precisely():
        for node in run:
            if node.op == "output":
                break
            value = run.compute(node)
            if node.op == "placeholder":
                unknown[node] = torch.ones(value.shape, dtype=torch.bool) if isinstance(value, Tensor) else None
            elif node.target is operator.getitem:
                masks, index = unknown.get(node.all_input_nodes[0]), node.args[1]
                unknown[node] = masks[index] if isinstance(masks, list) and isinstance(index, int) else masks
            elif node.op == "call_function":
                own = {n: unknown[n] for n in node.all_input_nodes if n in unknown}
                operands = Operands(node, run.operands(node), own, value, weights)
                found, unknown[node] = influence(operands)
                traced[node] = operands, found
                look(operands)
                operands.forget()
            for dead in run.drop(node):
                unknown.pop(dead, None)



def _backward(groups: Groups, traced: dict[fx.Node, tuple[Operands, Influence]]) -> dict[fx.Node, Any]:
    graph = groups.graph
    read: dict[fx.Node, Any] = {}
    for leaf in pytree.tree_leaves(graph.output.args):
        if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor):
            read[leaf] = torch.ones(size_of(leaf), dtype=torch.bool)
    for node in of_weights(graph):  # whatever is computed of weights alone is taken to be read
        if isinstance(node.meta.get("val"), Tensor):
            read[node] = torch.ones(size_of(node), dtype=torch.bool)
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function" or node not in read:
            continue
        if node.target is operator.getitem:
            source, index = node.args
            known = read.setdefault(source, {})  # type: ignore[arg-type]
            known[index] = known[index] | read[node] if index in known else read[node]
            continue
        for operand, mask in _transposed(*traced[node], read[node]).items():
            read[operand] = read[operand] | mask if operand in read else mask
    return read


def _transposed(operands: Operands, found: Influence, read: Any) -> dict[fx.Node, Tensor]:
    """The elements of a node's operands on which the read elements of its result depend."""
    masks = {n: torch.zeros(shape, dtype=torch.float32, requires_grad=True) for n, shape in operands.live.items()}
    with torch.enable_grad():
        result = found.apply(masks)
    pairs = [(result[i], mask) for i, mask in read.items()] if isinstance(read, dict) else [(result, read)]
    pairs = [(each, mask.float()) for each, mask in pairs if each.requires_grad]
    if not pairs:
        return {}
    results, wanted = zip(*pairs, strict=True)
    gradients: Any = torch.autograd.grad(results, list(masks.values()), wanted, allow_unused=True)
    return {n: gradient > 0 for n, gradient in zip(masks, gradients, strict=True) if gradient is not None}
