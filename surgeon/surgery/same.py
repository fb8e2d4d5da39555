"""Holds a traced graph against the predicted one, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.coupling import Groups
from surgeon.rules import where
from surgeon.trace import Graph, hint

# Operators that cut an axis into pieces; which of them is used does not matter where the pieces are the same.
_SPLITS = {"aten.split.Tensor", "aten.chunk.default", "aten.split_with_sizes.default", "aten.split.sizes"}


def pair(groups: Groups, traced: Graph, copies: Mapping[fx.Node, fx.Node]) -> str | dict[fx.Node, fx.Node]:
    """Each operator of the original graph with the one in `traced` that stands for it.

    `copies` maps the original's nodes to the predicted ones. Operators, the order in which they are wired, shapes, and
    all numbers but sizes must be the predicted ones (sizes are told by the shapes); otherwise the first place where
    they are not is told.
    """
    predicted = [n for n in groups.graph.nodes if n.op not in ("get_attr", "output")]
    found = [n for n in traced.nodes if n.op not in ("get_attr", "output")]
    names = _wiring(groups.graph)
    other = _wiring(traced)
    for old, new in zip(predicted, found, strict=False):
        copy = copies[old]
        if not _same_operator(copy, new):
            return f"{where(old)}: {copy.target} became {new.target}"
        shapes, want = _shapes(new), copy.meta["predicted"]
        if shapes is not None and shapes != want:
            return f"{where(old)} computes {shapes}, not {want}"
        a = [names[n] for n in old.all_input_nodes]
        b = [other[n] for n in new.all_input_nodes]
        if a != b and not _symbolic(old):
            return f"{where(old)} reads other operands"
        integers = not groups.typed[old].args
        if (have := _numbers(new, integers)) != (want := _numbers(copy, integers)):
            return f"{where(old)} is called with other numbers: {have}, not {want}"
    if len(predicted) != len(found):
        return f"it has {len(found)} operators, not {len(predicted)}"
    return dict(zip(predicted, found, strict=True))


def _wiring(graph: Graph) -> dict[fx.Node, Any]:
    """A name for each node that does not depend on the tracer's: its position, or the tensor that it reads."""
    names: dict[fx.Node, Any] = {}
    position = 0
    for node in graph.nodes:
        if node.op == "get_attr":
            names[node] = graph.canonical.get(graph.tensors.get(node.name, ""), str(node.target))
        else:
            names[node] = position
            position += 1
    return names


def _same_operator(a: fx.Node, b: fx.Node) -> bool:
    if str(a.target) in _SPLITS and str(b.target) in _SPLITS:
        return True
    return a.op == b.op and (a.op == "placeholder" or a.target == b.target)


def _symbolic(node: fx.Node) -> bool:
    """Whether sizes computed from a dynamic batch are among the operands: those may be written in other ways."""
    operands = [n.meta.get("val") for n in node.all_input_nodes if n.op != "get_attr"]
    return any(not isinstance(value, Tensor | tuple | list) for value in operands)


def _shapes(node: fx.Node) -> list[tuple[int, ...]] | None:
    value = node.meta.get("val")
    values = [value] if isinstance(value, Tensor) else list(value) if isinstance(value, tuple | list) else None
    if values is None:
        return None
    return [tuple(hint(size) for size in v.shape) if isinstance(v, Tensor) else () for v in values]


def _numbers(node: fx.Node, integers: bool) -> list[Any]:
    """The numbers an operator is called with; without `integers` where those are sizes printed from axes."""
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    return [v for v in leaves if isinstance(v, bool | float | str) or (integers and isinstance(v, int))]
