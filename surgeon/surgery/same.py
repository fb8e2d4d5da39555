"""Holds a traced graph against the predicted one, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.coupling import Groups
from surgeon.rules import arguments, where
from surgeon.trace import Graph, hint

# Operators that do the same when the shapes of what they compute are the same.
_ALIKE = [
    {"split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk"},
    {"view", "reshape", "flatten", "unflatten", "_unsafe_view"},
]
# Operators that compute their input; in eval mode dropout does.
_IDENTITIES = {"clone", "contiguous", "dropout", "alias", "detach", "lift_fresh_copy"}


def pair(groups: Groups, traced: Graph, copies: Mapping[fx.Node, fx.Node]) -> str | dict[fx.Node, fx.Node]:
    """Each operator of the original graph with the one in `traced` that stands for it.

    `copies` maps the original's nodes to the predicted ones. Operators, the order in which they are wired, shapes, and
    all numbers but sizes must be the predicted ones (sizes are told by the shapes); otherwise the first place where
    they are not is told.
    """
    predicted = _operators(groups.graph)
    found = _operators(traced)
    canonical = groups.graph.canonical
    names, other = _wiring(groups.graph, canonical), _wiring(traced, canonical)
    for old, new in zip(predicted, found, strict=False):
        copy = copies[old]
        if not _same_operator(copy, new):
            return f"{where(old)}: {copy.target} became {new.target}"
        shapes, want = _shapes(new), copy.meta["predicted"]
        if shapes != want:
            return f"{where(old)} computes {shapes}, not {want}"
        if _operands(old, names) != _operands(new, other):
            return f"{where(old)} reads other operands"
        integers = not groups.typed[old].args
        if (have := _numbers(new, integers)) != (wanted := _numbers(copy, integers)):
            return f"{where(old)} is called with other numbers: {have}, not {wanted}"
    if len(predicted) != len(found):
        return f"it has {len(found)} operators, not {len(predicted)}"
    return dict(zip(predicted, found, strict=True))


def _operators(graph: Graph) -> list[fx.Node]:
    """Inputs and operators that compute tensors. Sizes computed from a dynamic batch may be written in other ways."""
    nodes = [n for n in graph.nodes if n.op not in ("get_attr", "output") and _shapes(n) is not None]
    return [n for n in nodes if _name(n) not in _IDENTITIES]


def _wiring(graph: Graph, canonical: Mapping[str, str]) -> dict[fx.Node, Any]:
    """A name for each tensor that does not depend on the tracer's: its position, or the tensor that it reads.

    `canonical` gives one name to tied tensors.
    """
    names: dict[fx.Node, Any] = {node: position for position, node in enumerate(_operators(graph))}
    for node in graph.nodes:
        if node.op == "get_attr":
            name = graph.tensors.get(node.name, str(node.target))
            names[node] = canonical.get(name, name)
        elif _name(node) in _IDENTITIES and node.args[0] in names:
            names[node] = names[node.args[0]]
    return names


def _operands(node: fx.Node, names: Mapping[fx.Node, Any]) -> list[Any]:
    return [names[operand] for operand in node.all_input_nodes if operand in names]


def _name(node: fx.Node) -> str:
    return node.target._opname if isinstance(node.target, torch._ops.OpOverload) else ""


def _same_operator(a: fx.Node, b: fx.Node) -> bool:
    if any(_name(a) in alike and _name(b) in alike for alike in _ALIKE):
        return True
    return a.op == b.op and (a.op == "placeholder" or a.target == b.target)


def _shapes(node: fx.Node) -> list[tuple[int, ...]] | None:
    value = node.meta.get("val")
    values = [value] if isinstance(value, Tensor) else list(value) if isinstance(value, tuple | list) else None
    if values is None:
        return None
    return [tuple(hint(size) for size in v.shape) if isinstance(v, Tensor) else () for v in values]


def _numbers(node: fx.Node, integers: bool) -> list[Any]:
    """The numbers an operator is called with; without `integers` where those are sizes printed from axes."""
    given = arguments(node) if isinstance(node.target, torch._ops.OpOverload) else (node.args, node.kwargs)
    leaves = pytree.tree_leaves(given)
    return [v for v in leaves if isinstance(v, bool | float | str) or (integers and isinstance(v, int))]
