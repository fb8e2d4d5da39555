"""Types and devices that a trace has as constants follow the model's tensors again, as they do in the user's code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.frontend.copies import duplicate
from surgeon.frontend.functionalize import functionalize
from surgeon.frontend.isolation import untouched
from surgeon.frontend.program import export
from surgeon.frontend.trace import Graph, Inputs

#: What code reads of a floating type, by the names of torch.finfo.
_LIMITS: Final = ("min", "max", "eps", "tiny")


def follow_tensors(model: nn.Module, graph: Graph, copies: Mapping[fx.Node, fx.Node]) -> None:
    """Let the operators in `copies` take types and devices from the model's tensors where the traced ones had theirs.

    A type that is that of the model's floating tensors follows them, unless the user's code names it: this shows when
    the model is traced in another one. Devices follow the first input, limits of the type the type.
    """
    device = _first(graph, lambda value: True)
    floating = _parameter(graph) or _first(graph, Tensor.is_floating_point)
    kind = _tensor_of(graph, floating).dtype if floating is not None else None
    if device is not None:
        where = _tensor_of(graph, device).device
        _replace(copies, lambda node, value: value == where if isinstance(value, torch.device) else False,
                 device, "device")
    if floating is None or kind is None:
        return
    typed = [node for node in copies if kind in _constants(node)]
    named = _named(model, graph, kind) if typed else set()
    _replace(copies, lambda node, value: value is kind and node not in named, floating, "dtype")
    _replace_limits(copies, floating, kind)


def _constants(node: fx.Node) -> list[Any]:
    leaves = pytree.tree_leaves((node.args, node.kwargs)) if isinstance(node.target, torch._ops.OpOverload) else []
    return [leaf for leaf in leaves if not isinstance(leaf, fx.Node)]


def _first(graph: Graph, fits: Any) -> fx.Node | None:
    """The first input that fits."""
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    return next((n for n in inputs if isinstance(n.meta.get("val"), Tensor) and fits(n.meta["val"])), None)


def _parameter(graph: Graph) -> fx.Node | None:
    """The first floating parameter that an operator reads."""
    for node in graph.nodes:
        name = graph.tensors.get(node.name) if node.op == "get_attr" and node.users else None
        if name is not None and isinstance(value := graph.tensor(name), nn.Parameter) and value.is_floating_point():
            return node
    return None


def _tensor_of(graph: Graph, node: fx.Node) -> Tensor:
    value: Tensor = graph.tensor(graph.tensors[node.name]) if node.op == "get_attr" else node.meta["val"]
    return value


def _replace(copies: Mapping[fx.Node, fx.Node], follows: Any, source: fx.Node, attribute: str) -> None:
    made: list[fx.Node] = []
    for old, copy in copies.items():
        if not any(follows(old, leaf) for leaf in _constants(old)):
            continue
        if not made:
            made.append(_read(copies, source, attribute))

        def instead(leaf: Any, old: fx.Node = old) -> Any:
            return made[0] if not isinstance(leaf, fx.Node) and follows(old, leaf) else leaf

        copy.args, copy.kwargs = pytree.tree_map(instead, (copy.args, copy.kwargs))


def _replace_limits(copies: Mapping[fx.Node, fx.Node], source: fx.Node, kind: torch.dtype) -> None:
    for name in _LIMITS:
        value = getattr(torch.finfo(kind), name)
        uses = [(old, copy) for old, copy in copies.items() if any(_is(leaf, value) for leaf in _constants(old))]
        if not uses:
            continue
        read = _read(copies, source, "dtype")
        with read.graph.inserting_after(read):
            limits = read.graph.call_function(torch.finfo, (read,))
        with read.graph.inserting_after(limits):
            limit = read.graph.call_function(getattr, (limits, name))
        for _, copy in uses:
            copy.args, copy.kwargs = pytree.tree_map(
                lambda leaf, value=value, limit=limit: limit if _is(leaf, value) else leaf, (copy.args, copy.kwargs)
            )


def _is(leaf: Any, value: float) -> bool:
    return isinstance(leaf, float) and leaf == value


def _read(copies: Mapping[fx.Node, fx.Node], source: fx.Node, attribute: str) -> fx.Node:
    """A new node, in front of all operators, that reads an attribute of a tensor."""
    copy = copies[source]
    last = [node for node in copy.graph.nodes if node.op == "placeholder"][-1]
    with copy.graph.inserting_after(last):
        tensor = copy if copy.op == "placeholder" else copy.graph.get_attr(str(copy.target))
    with copy.graph.inserting_after(last if tensor is copy else tensor):
        return copy.graph.create_node("call_function", getattr, (tensor, attribute), name=attribute)


def _named(model: nn.Module, graph: Graph, kind: torch.dtype) -> set[fx.Node]:
    """The operators whose type the user's code names, so that they have it in a model of another type too.

    There are none where the model can't be traced in another type, or has other operators then: nothing can be told.
    """
    other = torch.float64 if kind is not torch.float64 else torch.float32
    try:
        second = list(_operators(_traced(model, graph.inputs, other)))
    except Exception:  # noqa: BLE001  (the user's forward, and export, raise all kinds; then nothing is told)
        return set()
    first = list(_operators(graph.module.graph))
    if [node.target for node in first] != [node.target for node in second]:
        return set()
    return {a for a, b in zip(first, second, strict=True) if kind in _constants(a) and kind in _constants(b)}


def _operators(graph: fx.Graph) -> Iterator[fx.Node]:
    """What computes tensors, less what only computes sizes."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and "sym_" not in node.name:
            yield node


def _traced(model: nn.Module, inputs: Inputs, kind: torch.dtype) -> fx.Graph:
    """The graph of a copy of the model whose floating tensors are of another type, the parameters without values."""
    parameters = {
        id(value): nn.Parameter(torch.empty_like(value, dtype=kind), requires_grad=False)
        for value in model.parameters() if value.is_floating_point()
    }
    copy = duplicate(model, parameters).eval().to(kind)
    changed = pytree.tree_map(
        lambda leaf: leaf.to(kind) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, inputs
    )
    with untouched(model):
        module = functionalize(export(copy, changed, ()))
    return module.graph
