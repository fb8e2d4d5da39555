"""Which parameters hold connections: the weights of operators that multiply and accumulate."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from surgeon.groups.coupling import Groups
from surgeon.groups.gains import evaluate, is_constant
from surgeon.ir.operators import is_a, operator_name
from surgeon.rules import arguments

#: The arguments through which such operators take a weight; in `_ADDING`, `self` is an addend instead.
_FACTORS = {"weight", "params", "self", "other", "mat1", "mat2", "batch1", "batch2", "vec", "tensor", "tensors"}
_ADDING = {"addmm", "baddbmm"}
#: Operators that multiply the entries of a weight: of a division or a norm, those of the first operand.
_MULTIPLIED = {"mul", "div", "_weight_norm", "_weight_norm_interface"}


def connection_weights(groups: Groups) -> dict[str, nn.Parameter]:
    """The parameters that are factors in sums of products, by their first names.

    These are the weights of linear layers, convolutions, recurrent layers and matrix products, but not biases, scales,
    the parameters of norms, or tables that are only looked up in, such as position embeddings.

    >>> import surgeon, torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    >>> list(connection_weights(surgeon.inspect(net, torch.randn(2, 3, 4, 4))))
    ['0.weight', '3.weight']
    """
    found: dict[str, nn.Parameter] = {}
    for node in _factors(groups):
        source = _source(groups, node)
        if source is not None:
            found[groups.graph.canonical[groups.graph.tensors[source.name]]] = _parameter(groups, source)
    return found


def magnitudes(groups: Groups) -> dict[str, Tensor]:
    """The magnitudes of the connections, by the names of their weights.

    Where the weights that are read are computed, as under a mask or weight norm, it is theirs.
    """
    found: dict[str, Tensor] = {}
    for node in _factors(groups):
        source = _source(groups, node)
        if source is None:
            continue
        name, value = groups.graph.canonical[groups.graph.tensors[source.name]], _parameter(groups, source)
        computed = evaluate(groups.graph, node) if node.op != "get_attr" and is_constant(node) else value.detach()
        same = computed.shape == value.shape and name not in found
        found[name] = (computed if same else value.detach()).abs().to(value.dtype)
    return found


def _factors(groups: Groups) -> Iterator[fx.Node]:
    """The operands that are multiplied and summed over."""
    for node, typed in groups.typed.items():
        for name, operands in arguments(node).items() if typed.macs else ():
            if name not in _FACTORS or (name == "self" and operator_name(node) in _ADDING):
                continue
            for operand in operands if isinstance(operands, list | tuple) else [operands]:
                if isinstance(operand, fx.Node):
                    yield operand


def _parameter(groups: Groups, node: fx.Node) -> Any:
    return groups.graph.values.get(groups.graph.tensors.get(node.name, ""))


def _source(groups: Groups, node: fx.Node) -> fx.Node | None:
    """The node that reads the parameter, of more than one axis, whose entries `node` gives.

    They may be rearranged and multiplied, as by a mask or by weight norm: an entry of zero stays zero.
    """
    if node.op == "get_attr":
        value = _parameter(groups, node)
        return node if isinstance(value, nn.Parameter) and value.dim() > 1 else None
    moves = is_a(node, "identity", "view", "reorder", "split", "part", "repeat", "cast")
    if node.target is operator.getitem or (moves and len(node.all_input_nodes) == 1):
        return _source(groups, node.all_input_nodes[0])
    operands = node.all_input_nodes if operator_name(node) == "mul" else node.all_input_nodes[:1]
    if operator_name(node) not in _MULTIPLIED:
        return None
    found = [source for operand in operands if (source := _source(groups, operand)) is not None]
    return max(found, key=lambda source: _parameter(groups, source).numel(), default=None)
