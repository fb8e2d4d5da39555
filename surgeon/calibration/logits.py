"""What outputs are a softmax or a sigmoid of: near 0 and 1, probabilities tell little of how far off they are.

So a model that ends in one is judged and trained as the same model without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.ir.operators import operator_name

_SQUASHING = frozenset({"softmax", "_softmax", "sigmoid"})


def logits(nodes: Iterable[fx.Node]) -> dict[int, fx.Node]:
    """By the place of an output of a graph, the operator whose softmax or sigmoid it is.

    >>> import torch
    >>> from surgeon.frontend.trace import trace
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1))
    >>> {place: node.name for place, node in logits(trace(net.eval(), torch.ones(2, 4)).nodes).items()}
    {0: 'linear'}
    """
    output = next(node for node in reversed(list(nodes)) if node.op == "output")
    leaves = [each for each in pytree.tree_leaves(output.args) if isinstance(each, fx.Node)]
    tensors = [each for each in leaves if isinstance(each.meta.get("val"), Tensor)]
    return {
        place: node.args[0] for place, node in enumerate(tensors)
        if node.op == "call_function" and operator_name(node) in _SQUASHING and isinstance(node.args[0], fx.Node)
    }


def unsquashed(outputs: Sequence[Tensor], at: Mapping[int, fx.Node], values: Mapping[fx.Node, Tensor]) -> list[Tensor]:
    """The outputs, with what some of them are the softmax or sigmoid of in their places."""
    return [values[at[place]] if place in at else each for place, each in enumerate(outputs)]
