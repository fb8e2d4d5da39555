"""Holds a traced graph against the predicted one, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.frontend.trace import Graph, hint
from surgeon.groups.coupling import Groups
from surgeon.ir.operators import is_a
from surgeon.rules import arguments, example_number, is_random, where
from surgeon.surgery.canonical import Call, Shape, Stream, Value, call_of, difference, map_leaves, results_of


def pair(groups: Groups, traced: Graph, copies: Mapping[fx.Node, fx.Node]) -> str | dict[fx.Node, fx.Node]:
    """Each operator of the original graph with the one in `traced` that stands for it.

    `copies` maps the original's nodes to the predicted ones. Operators, the order in which they are wired, shapes, and
    all numbers but sizes must be the predicted ones (sizes are told by the shapes); otherwise the first place where
    they are not is told.
    """
    graph, canonical = groups.graph, groups.graph.canonical
    originals = {copy: old for old, copy in copies.items()}

    def tensor(node: fx.Node) -> str:
        """One name for tied tensors."""
        name = (graph if node in originals else traced).tensors.get(originals.get(node, node).name, str(node.target))
        return canonical.get(name, name)

    ends = [copies[n] for n in pytree.tree_leaves(graph.output.args) if isinstance(n, fx.Node)]
    predicted, old = _stream(copies.values(), ends, tensor)
    found, new = _stream(traced.nodes, pytree.tree_leaves(traced.output.args), tensor)
    unlike = difference(predicted, found)
    if unlike is None:
        return {originals[copy]: node for copy, node in zip(old, new, strict=True)}
    return unlike.words if unlike.call < 0 else f"{where(originals[old[unlike.call]])}{unlike.words}"


def _stream(
    nodes: Iterable[fx.Node], ends: Iterable[Any], tensor: Callable[[fx.Node], str]
) -> tuple[Stream, list[fx.Node]]:
    """Inputs and operators that compute tensors, as calls; and the node of each.

    Sizes computed from a dynamic batch are no calls, as they may be written in other ways.
    """
    known: dict[fx.Node, Value] = {}
    calls: list[Call] = []
    called: list[fx.Node] = []
    for node in nodes:
        if node.op == "get_attr":
            known[node] = Value(-1, tensor(node))
        elif node.op != "output" and (shapes := _shapes(node)) is not None:
            if is_a(node, "identity", "dropout") and not is_random(node):  # it computes its input
                known[node] = known[node.all_input_nodes[0]]
                continue
            known[node] = Value(len(calls))
            calls.append(_call(node, shapes, known))
            called.append(node)
    return Stream(calls, [known[end] for end in ends if end in known]), called


def _call(node: fx.Node, shapes: list[Shape], known: Mapping[fx.Node, Value]) -> Call:
    if node.op == "placeholder":
        return Call("an input", {}, shapes, [], str(node.target))
    by_name = isinstance(node.target, torch._ops.OpOverload)
    given = arguments(node) if by_name else {"args": node.args, "kwargs": node.kwargs}
    source = given.get("self")
    shape = _shapes(source) if isinstance(source, fx.Node) else None
    told = map_leaves(given, lambda each: _told(each, known) if isinstance(each, fx.Node) else each)
    return call_of(node.target, told, shape[0] if shape else (), shapes, node.meta["val"])


def _told(node: fx.Node, known: Mapping[fx.Node, Value]) -> Any:
    """An operand; a number that is computed at its value for the example inputs, and none where that is not known."""
    if node in known:
        return known[node]
    number = example_number(node)
    return ... if isinstance(number, fx.Node) else number


def _shapes(node: fx.Node) -> list[Shape] | None:
    """The shapes of the tensors that a node computes, a predicted node's as predicted; None where it computes none."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor | tuple | list):
        return None
    if "predicted" in node.meta:
        return list(node.meta["predicted"])
    return [tuple(hint(size) for size in v.shape) if isinstance(v, Tensor) else () for v in results_of(value)]
