"""Which positions of a value another one consists of, found by moving positions instead of numbers through the graph.

>>> from surgeon.frontend.trace import trace
>>> class Halves(torch.nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.up = torch.nn.Linear(3, 4)
...     def forward(self, x):
...         a, b = self.up(x).chunk(2, -1)
...         return a.relu() + b
>>> graph = trace(Halves(), torch.zeros(2, 3))
>>> up = next(node for node in graph.nodes if "linear" in node.name)
>>> start = torch.arange(4).expand(2, 4)
>>> [(use.user.name, use.places[0].tolist()) for use in follow(up, start)]
[('relu', [0, 1]), ('add', [2, 3])]
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.frontend.trace import hint
from surgeon.ir.operators import operator_name
from surgeon.rules import arguments
from surgeon.rules.base import size_of

#: Operators that only move or repeat the positions of their input.
_MOVES = set(
    "t transpose permute numpy_T mT view reshape _unsafe_view flatten unflatten unsqueeze squeeze select slice narrow "
    "split split_with_sizes unsafe_split chunk unbind contiguous clone alias detach expand expand_as repeat "
    "repeat_interleave movedim swapaxes".split()
)
#: Operators that multiply every position by the same number.
_SCALES = {"dropout", "mul", "div", "neg"}


@dataclass(frozen=True)
class Use:
    """An operator `user` of `operand`, whose positions are the positions `places` of the start."""

    user: fx.Node
    operand: fx.Node
    places: Tensor = field(repr=False)


Passing = Callable[[fx.Node, fx.Node, Tensor], Tensor | None]


def follow(node: fx.Node, places: Tensor, passes: Passing | None = None) -> Iterator[Use]:
    """Each use of a value, whose positions are `places`, other than movement and scaling.

    `passes` may map a user, its operand and the operand's places to the places of what the user computes.
    """
    for user in node.users:
        moved = _moved(user, node, places)
        if moved is None and passes is not None:
            moved = passes(user, node, places)
        if moved is None:
            yield Use(user, node, places)
        elif isinstance(moved, Tensor):
            yield from follow(user, moved, passes)
        else:
            for piece in user.users:
                if piece.target is operator.getitem:
                    yield from follow(piece, moved[piece.args[1]], passes)


def _moved(user: fx.Node, node: fx.Node, places: Tensor) -> Any:
    """The places of what an operator computes, or None if it does more than move or scale them."""
    name = operator_name(user)
    if user.all_input_nodes[0] is not node:
        return None
    if name in _SCALES:
        given = arguments(user)
        one = name in ("dropout", "neg") or not isinstance(given["other"], fx.Node)
        return places if one and user.args[0] is node and given.get("rounding_mode") is None else None
    if name not in _MOVES:
        return None
    args, kwargs = fx.node.map_arg((user.args, user.kwargs), lambda each: places if each is node else _number(each))
    if name in ("view", "_unsafe_view"):
        return places.reshape(args[1])  # type: ignore[arg-type]  # a list of sizes
    return user.target(*args, **kwargs)  # type: ignore[operator]


def _number(node: fx.Node) -> Any:
    """A size in the graph, at the value it was traced with."""
    value = node.meta.get("val")
    return torch.empty(size_of(node)) if isinstance(value, Tensor) else hint(value)  # type: ignore[arg-type]
