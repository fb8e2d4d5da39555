"""Tensors that make up for norms of weights, so that the weights that are left stay the same numbers.

Weight norm divides each unit's weights by their norm and multiplies them by a gain; spectral norm divides a weight by a
number uᵀ W v. Where units are missing from such a norm, the gain, or v, is rescaled by what is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from surgeon.frontend.trace import Graph
from surgeon.ir.axes import Axis, Leaf
from surgeon.ir.operators import is_a, operator_name
from surgeon.rules import Axes, Kept, Typed, where
from surgeon.rules.base import size_of

if TYPE_CHECKING:
    from surgeon.groups.coupling import Groups

#: Operators of which each operand multiplies the result, beside those that only move elements.
_PRODUCTS = {"dot", "vdot", "mv", "mm", "matmul", "mul", "sum", "outer", "linear"}

#: The id of axes none of whose units belong to a group.
_NO_GROUP = -1


@dataclass(frozen=True)
class Balance:
    """How `tensor` is rescaled: so that `node` of `graph`, which reads tensors of the model alone, computes the same.

    Of the tensor `normed`, the norm is taken over the axes `over`; it is empty where the result is one number.
    """

    tensor: str
    node: fx.Node
    graph: Graph = field(repr=False)
    normed: str = ""
    over: Axes = ()


def balances(
    graph: Graph, typed: Mapping[fx.Node, Typed], canonical: Mapping[str, str], pin: Callable[[Axes, str], None]
) -> dict[str, Balance]:
    """The tensors that are rescaled, by canonical name.

    `pin` is given the axes of a norm that no tensor can make up for, and why.
    """
    names = {node: own for node in graph.nodes if (own := graph.tensors.get(node.name)) and node.op == "get_attr"}
    first = {node: canonical.get(own, graph.canonical[own]) for node, own in names.items()}
    constant: set[fx.Node] = set(names)
    numbers: set[fx.Node] = set()
    found: dict[str, Balance] = {}
    readers: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        gain = typed[node].gain
        if gain is not None:
            source, of = (_read(each) for each in (gain.node, gain.of))
            if source not in names or of not in names:
                pin(gain.over, f"{where(node)}: a norm of computed weights is taken over this axis")
                continue
            constant.add(node)
            balance = Balance(names[source], node, graph, names[of], gain.over)
        elif isinstance(node.target, torch._ops.OpOverload) and constant.issuperset(node.all_input_nodes):
            constant.add(node)
            vector = _vector(node, graph, names)
            if vector is None or numbers & _ancestors(node):
                continue
            numbers.add(node)
            source, balance = vector, Balance(names[vector], node, graph)
        else:
            continue
        readers.setdefault(first[source], []).append(node)
        found.setdefault(first[source], balance)
    for name, nodes in readers.items():
        if not _alone(name, nodes, first):
            balance = found.pop(name)
            pin(balance.over, f"{where(nodes[0])}: the scale of a norm over this axis is read elsewhere too")
    return found


def rescaled(groups: Groups, kept: Kept) -> dict[str, Tensor]:
    """The rescaled tensors, whole and in float64, by canonical name: those of norms that lose units.

    At the kept positions, the operators on weights then compute what they computed before.
    """

    found: dict[str, Tensor] = {}
    canonical, axes = groups.graph.canonical, erasable(groups)

    def left(name: str, value: Tensor) -> Tensor:
        value = found.get(canonical[name], value)  # a norm of what is under another one
        for dim, axis in enumerate(axes[name]):
            if kept.changed(axis):
                share = torch.zeros(axis.size, dtype=value.dtype, device=value.device)
                share[torch.as_tensor(kept.positions(axis), device=value.device)] = 1
                value = value * share.reshape(-1, *[1] * (value.dim() - dim - 1))
        return value

    for name, balance in groups.gains.items():
        if not any(kept.changed(axis) for axis in _summed(groups, balance)):
            continue
        before = evaluate(balance.graph, balance.node)
        # A unit whose kept weights are zero has no norm.
        after = evaluate(balance.graph, balance.node, left).nan_to_num(0, 0, 0)
        old = balance.graph.tensor(balance.tensor).detach()
        shape = old.shape if balance.normed and after.dim() >= old.dim() else ()
        share, whole = (before * after).sum_to_size(shape), (after * after).sum_to_size(shape)
        found[name] = old.double() * torch.where(whole > 0, share / whole, 1.0)
    return found


def erasable(groups: Groups) -> dict[str, Axes]:
    """The axes of each tensor, by name, less those at which a removed unit must not be set to zero.

    Weight norm divides a unit's weights by their norm, which must not become zero: its gain does.
    """
    canonical = groups.graph.canonical
    found = dict(groups.tensors)
    for balance in groups.gains.values():
        for name in found if balance.normed else ():
            if canonical[name] == canonical[balance.normed]:
                found[name] = tuple(a if a in balance.over else Leaf(_NO_GROUP, a.size) for a in found[name])
    return found


def held(groups: Groups) -> set[fx.Node]:
    """The operators on weights that compute the same whatever is removed, and those that they need alone."""
    nodes = {balance.node for balance in groups.gains.values()}
    return nodes.union(*(_ancestors(node) for node in nodes if not _is_normed(groups, node)))


def _is_normed(groups: Groups, node: fx.Node) -> bool:
    return any(balance.node is node and balance.normed for balance in groups.gains.values())


def evaluate(graph: Graph, node: fx.Node, change: Callable[[str, Tensor], Tensor] | None = None) -> Tensor:
    """What a node computes in float64 of the model's tensors alone, which `change` may change, by name."""
    known: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:
        if node not in known:
            name = graph.tensors.get(node.name)
            if node.op == "get_attr" and name is not None:
                known[node] = graph.tensor(name).detach().double()
                known[node] = known[node] if change is None else change(name, known[node])
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return known[node]

    with torch.no_grad():
        result = value(node)
    first: Tensor = result[0] if isinstance(result, tuple | list) else result
    return first


def _summed(groups: Groups, balance: Balance) -> Iterator[Axis]:
    """The axes whose units are missing from the norm when they are removed."""
    if balance.normed:
        yield from balance.over
        return
    for node in _ancestors(balance.node):
        if node.op == "get_attr":
            yield from groups.axes_of(node)[0]


def _read(node: Any) -> Any:
    """The node that reads the tensor of which this one gives a copy."""
    while isinstance(node, fx.Node) and is_a(node, "identity"):
        node = node.args[0]
    return node


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = [node]
    while todo:
        for operand in todo.pop().all_input_nodes:
            if operand not in found:
                found.add(operand)
                todo.append(operand)
    return found


def is_constant(node: fx.Node) -> bool:
    """Whether a node computes from the model's tensors alone, by torch's operators."""
    return all(
        each.op == "get_attr" or isinstance(each.target, torch._ops.OpOverload) for each in {node, *_ancestors(node)}
    )


def _vector(node: fx.Node, graph: Graph, names: Mapping[fx.Node, str]) -> fx.Node | None:
    """What reads the last of the untrained vectors that the result is proportional to, if that is a number."""
    value = node.meta.get("val")
    floating = isinstance(value, Tensor) and value.is_floating_point()
    if not floating or operator_name(node) not in _PRODUCTS or any(size != 1 for size in size_of(node)):
        return None
    found = [each for each in _multiplies(node) if each in names and _is_free_vector(graph.tensor(names[each]))]
    return found[-1] if found else None


def _multiplies(node: fx.Node) -> dict[fx.Node, None]:
    """The nodes that read a tensor which the result is proportional to."""
    if node.op == "get_attr":
        return {node: None}
    moves = is_a(node, "identity", "view", "reorder", "cast")
    if not (moves or operator_name(node) in _PRODUCTS) or (operator_name(node) == "linear" and len(node.args) > 2):
        return {}
    found: dict[fx.Node, None] = {}
    twice: set[fx.Node] = set()
    for operand in node.args:
        for each in _multiplies(operand) if isinstance(operand, fx.Node) else ():
            twice |= {each} & found.keys()
            found[each] = None
    return {each: None for each in found if each not in twice}


def _is_free_vector(value: Tensor) -> bool:
    """Whether a tensor is a vector that is not trained."""
    trained = isinstance(value, nn.Parameter) and value.requires_grad
    return not trained and value.is_floating_point() and 1 < value.numel() == max(value.shape)


def _alone(name: str, readers: list[fx.Node], names: Mapping[fx.Node, str]) -> bool:
    """Whether a tensor is read only for `readers`, which all compute the same."""
    inside = set(readers).union(*(_ancestors(node) for node in readers))
    sources = {node for node, own in names.items() if own == name}
    between = {node for node in inside if not sources.isdisjoint(_ancestors(node))} - set(readers)
    leaks = any(user not in inside for node in sources | between for user in node.users)
    return not leaks and len({_text(node, names) for node in readers}) == 1


def _text(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    """How a node computes from the model's tensors."""
    if node in names:
        return names[node]
    return f"{node.target}{fx.node.map_arg((node.args, node.kwargs), lambda each: _text(each, names))}"
