"""Holds a traced graph against the predicted one, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.frontend.trace import Graph, hint
from surgeon.groups.coupling import Groups
from surgeon.rules import arguments, is_random, where

# Operators that do the same when the shapes of what they compute are the same.
_ALIKE = [
    {"split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk"},
    {"view", "reshape", "flatten", "unflatten", "_unsafe_view"},
]
# Printed arguments that the shapes of what an operator computes do not tell.
_PLACES = ("start", "end", "shifts", "groups", "num_groups", "pad", "padding")
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
        shapes, predicted_shapes = _shapes(new), copy.meta["predicted"]
        if shapes != predicted_shapes:
            return f"{where(old)} computes {shapes}, not {predicted_shapes}"
        if _operands(old, names) != _operands(new, other):
            return f"{where(old)} reads other operands"
        integers = not groups.typed[old].args
        have, want = _numbers(new, integers), _numbers(copy, integers)
        if have != want:
            return f"{where(old)} is called with other numbers: {have}, not {want}"
        if (places := _places(new, groups.typed[old].args)) != (wanted := _places(copy, groups.typed[old].args)):
            return f"{where(old)} is called with {places}, not {wanted}"
    if len(predicted) != len(found):
        return f"it has {len(found)} operators, not {len(predicted)}"
    return dict(zip(predicted, found, strict=True))


def _operators(graph: Graph) -> list[fx.Node]:
    """Inputs and operators that compute tensors. Sizes computed from a dynamic batch may be written in other ways."""
    nodes = [n for n in graph.nodes if n.op not in ("get_attr", "output") and _shapes(n) is not None]
    return [n for n in nodes if not _computes_its_input(n)]


def _computes_its_input(node: fx.Node) -> bool:
    return _name(node) in _IDENTITIES and not is_random(node)


def _wiring(graph: Graph, canonical: Mapping[str, str]) -> dict[fx.Node, Any]:
    """A name for each tensor that does not depend on the tracer's: its position, or the tensor that it reads.

    `canonical` gives one name to tied tensors.
    """
    names: dict[fx.Node, Any] = {node: position for position, node in enumerate(_operators(graph))}
    for node in graph.nodes:
        if node.op == "get_attr":
            name = graph.tensors.get(node.name, str(node.target))
            names[node] = canonical.get(name, name)
        elif _computes_its_input(node):
            names[node] = names[node.all_input_nodes[0]]
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
    by_name = isinstance(node.target, torch._ops.OpOverload)
    leaves = pytree.tree_leaves(arguments(node) if by_name else (node.args, node.kwargs))
    return [v for v in leaves if isinstance(v, bool | float | str) or (integers and isinstance(v, int))]


def _places(node: fx.Node, printed: Mapping[str, Any]) -> dict[str, Any]:
    """The printed arguments that say where to read, or in how many groups; bounds of slices counted from the front."""
    if not isinstance(node.target, torch._ops.OpOverload) or not any(name in printed for name in _PLACES):
        return {}
    given = arguments(node)
    found = {name: given[name] for name in _PLACES if name in printed and name in given}
    for name in found.keys() & {"start", "end"}:
        size = _size_along(given)
        bound = found[name] if found[name] is not None else (0 if name == "start" else size)
        if isinstance(bound, int):
            found[name] = min(max(bound + size if bound < 0 else bound, 0), size)
    return {name: value for name, value in found.items() if all(isinstance(v, int) for v in pytree.tree_leaves(value))}


def _size_along(given: Mapping[str, Any]) -> int:
    source = given["self"].meta
    sizes = source["predicted"][0] if "predicted" in source else [hint(size) for size in source["val"].shape]
    return int(sizes[given["dim"] or 0])
