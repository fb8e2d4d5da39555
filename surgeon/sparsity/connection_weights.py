"""Which parameters hold connections: the weights of operators that multiply and accumulate."""

from __future__ import annotations

import operator

from torch import Tensor, fx, nn

from surgeon.groups.coupling import Groups
from surgeon.ir.operators import is_a, operator_name
from surgeon.rules import arguments

#: The arguments through which such operators take a weight; in `_ADDING`, `self` is an addend instead.
_FACTORS = {"weight", "params", "self", "other", "mat1", "mat2", "batch1", "batch2", "vec", "tensor", "tensors"}
_ADDING = {"addmm", "baddbmm"}


def connection_weights(groups: Groups) -> dict[str, nn.Parameter]:
    """The parameters that are factors in sums of products, by their first names.

    These are the weights of linear layers, convolutions, recurrent layers and matrix products, but not biases, scales,
    the parameters of norms, or tables that are only looked up in, such as position embeddings.

    >>> import surgeon, torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    >>> list(connection_weights(surgeon.inspect(net, torch.randn(2, 3, 4, 4))))
    ['0.weight', '3.weight']
    """
    graph = groups.graph
    found: dict[str, nn.Parameter] = {}
    for node, typed in groups.typed.items():
        if not typed.macs:
            continue
        for name, operands in arguments(node).items():
            if name not in _FACTORS or (name == "self" and operator_name(node) in _ADDING):
                continue
            for operand in operands if isinstance(operands, list | tuple) else [operands]:
                tensor = graph.tensors.get(_source(operand).name) if isinstance(operand, fx.Node) else None
                value: Tensor | None = graph.values.get(tensor or "")
                if isinstance(value, nn.Parameter) and value.dim() > 1 and tensor is not None:
                    found[graph.canonical[tensor]] = value
    return found


def _source(node: fx.Node) -> fx.Node:
    """The node whose elements `node` rearranges."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        moves = is_a(node, "identity", "view", "reorder", "split", "part", "repeat", "cast")
        if not moves and node.target is not operator.getitem:
            break
        node = node.all_input_nodes[0]
    return node
