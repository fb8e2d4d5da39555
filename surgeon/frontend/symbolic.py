"""The graph of a model in which sizes of the inputs are symbols, and what must hold of them for it to be right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.errors import SurgeonError, first_line
from surgeon.frontend.functionalize import functionalize
from surgeon.frontend.isolation import untouched
from surgeon.frontend.program import export, in_time
from surgeon.frontend.trace import Graph, Inputs, graph_of, skeleton
from surgeon.ir.size_conditions import Condition, Place, Term
from surgeon.support.time_limit import TimeIsUp


@dataclass(frozen=True)
class SizedGraph:
    """A graph of sizes that are symbols at the axes `free`, right wherever all `conditions` hold, as torch has it."""

    graph: Graph
    free: frozenset[Place]
    conditions: tuple[Condition, ...]


def trace_sizes(model: nn.Module, inputs: Inputs, free: Collection[Place], seconds: float) -> SizedGraph | str:
    """The graph of `model` with symbols at the `free` axes; or why there is none, such as that it took too long.

    The model is left as it is; the graph shares its tensors.
    """
    shared = skeleton(model).eval()
    try:
        with untouched(model), in_time(seconds):
            module = functionalize(export(shared, inputs, free))
    except TimeIsUp:
        return f"torch.export did not end within {seconds:.0f} s"
    except Exception as error:  # noqa: BLE001  (export raises all kinds)
        return f"torch.export can't trace it ({first_line(error)})"
    try:
        return _sized(module, shared, inputs)
    except SurgeonError as error:
        return first_line(error)
    except _Unknown as error:
        return f"torch.export asks for what can't be checked ({error})"


def assumed(graph: Graph) -> SizedGraph | str:
    """A graph that is there already, with what it assumes; or why that can't be told."""
    sizes = dict(_symbolic(graph.module.graph))
    try:
        return SizedGraph(graph, frozenset(sizes), tuple(_conditions(sizes)))
    except _Unknown as error:
        return f"torch.export asks for what can't be checked ({error})"


def free_axes(graph: Graph) -> frozenset[Place]:
    """The axes of the inputs whose sizes are symbols in a graph."""
    return frozenset(place for place, _ in _symbolic(graph.module.graph))


def beside_train_only(graph: Graph, planned: Graph) -> Graph:
    """The graph with the parts that run in train mode alone, as another graph of the same model has them."""
    if planned.train_only is None:
        return graph
    values, canonical = {**planned.values, **graph.values}, {**planned.canonical, **graph.canonical}
    return replace(graph, values=values, canonical=canonical, train_only=planned.train_only)


def _sized(module: fx.GraphModule, model: nn.Module, inputs: Inputs) -> SizedGraph:
    sizes = dict(_symbolic(module.graph))
    batches = [(leaf, 0) for leaf, v in enumerate(pytree.tree_leaves(inputs)) if isinstance(v, Tensor) and v.dim()]
    graph = graph_of(module, model, inputs, all(place in sizes for place in batches))
    return SizedGraph(graph, frozenset(sizes), tuple(_conditions(sizes)))


def _symbolic(graph: fx.Graph) -> Iterator[tuple[Place, torch.SymInt]]:
    """The sizes of the inputs that are symbols."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for leaf, node in enumerate(inputs):
        value = node.meta.get("val")
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None:
                yield (leaf, axis), size


def _conditions(sizes: Mapping[Place, torch.SymInt]) -> Iterator[Condition]:
    """What torch assumed of the sizes: that some are equal, between which numbers they are, and what it branched on."""
    known: dict[Any, Term] = {}
    for place, size in sizes.items():
        if size.node.expr.is_Symbol:
            known.setdefault(size.node.expr, ("size", *place))
    for place, size in sizes.items():
        if known.get(size.node.expr) != (term := ("size", *place)):
            yield Condition(("==", term, _term(size.node.expr, known)))
    if not sizes:
        return
    environment = next(iter(sizes.values())).node.shape_env
    for symbol, term in known.items():
        bounds = environment.var_to_range[symbol]
        if bounds.lower > 0:
            yield Condition((">=", term, int(bounds.lower)))
        if bounds.upper.is_Integer and bounds.upper < 2**40:
            yield Condition(("<=", term, int(bounds.upper)))
    for guard in environment.guards:
        expression = environment.simplify(guard.expr)
        if expression.free_symbols:
            yield Condition(_term(expression, known))


class _Unknown(Exception):
    """A formula that has no counterpart in a Condition."""


# Sympy's and torch's functions, by the names of their classes.
_NAMES = {
    "Add": "+", "Mul": "*", "Pow": "**", "PowByNatural": "**", "FloatPow": "**", "FloorDiv": "//", "CleanDiv": "//",
    "Mod": "%", "PythonMod": "%", "IntTrueDiv": "/", "FloatTrueDiv": "/", "Max": "max", "Min": "min",
    "TruncToInt": "int", "ToFloat": "float", "Equality": "==", "Unequality": "!=", "StrictLessThan": "<",
    "LessThan": "<=", "StrictGreaterThan": ">", "GreaterThan": ">=", "Or": "or", "And": "and", "Not": "not",
}


def _term(expression: Any, known: Mapping[Any, Term]) -> Term:
    if expression in known:
        return known[expression]
    if expression.is_Integer:
        return int(expression)
    if expression.is_Rational:
        return ("/", int(expression.p), int(expression.q))
    if expression.is_Float:
        return float(expression)
    name = _NAMES.get(type(expression).__name__)
    if name is None or not expression.args:
        raise _Unknown(str(expression))
    return (name, *(_term(each, known) for each in expression.args))
