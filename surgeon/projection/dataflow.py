"""Which positions of a value another one is made of, found by moving positions instead of numbers through the graph.

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
from surgeon.rules import arguments
from surgeon.rules.base import size_of

#: Operators that only move the positions of their input, or repeat them.
_MOVES = set(
    "t transpose permute numpy_T mT view reshape _unsafe_view flatten unflatten unsqueeze squeeze select slice narrow "
    "split split_with_sizes unsafe_split chunk unbind contiguous clone alias detach expand expand_as repeat "
    "repeat_interleave movedim swapaxes".split()
)
#: Operators that leave every position where it is, times one number.
_SCALES = {"dropout", "mul", "div", "neg"}


@dataclass(frozen=True)
class Use:
    """An operator `user` that computes with `operand`, each of whose positions is one of `places` of the start."""

    user: fx.Node
    operand: fx.Node
    places: Tensor = field(repr=False)


Passing = Callable[[fx.Node, fx.Node, Tensor], Tensor | None]


def follow(node: fx.Node, places: Tensor, passes: Passing | None = None) -> Iterator[Use]:
    """Each use of a value, whose positions are `places`, that is more than a movement or a factor.

    `passes` may tell, for a user, an operand of it and the operand's places, the places of what the user computes.
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
            yield from _pieces(user, moved, passes)


def _pieces(node: fx.Node, pieces: Any, passes: Passing | None) -> Iterator[Use]:
    """The uses of an operator's several outputs."""
    for user in node.users:
        if user.target is operator.getitem:
            yield from follow(user, pieces[user.args[1]], passes)


def _moved(user: fx.Node, node: fx.Node, places: Tensor) -> Any:
    """The places of what an operator computes, or None where it does more than move or scale them."""
    if not isinstance(user.target, torch._ops.OpOverload) or user.all_input_nodes[0] is not node:
        return None
    name = user.target._schema.name.removeprefix("aten::")
    if name in _SCALES:
        given = arguments(user)
        one = name in ("dropout", "neg") or not isinstance(given["other"], fx.Node)
        return places if one and user.args[0] is node and given.get("rounding_mode") is None else None
    if name not in _MOVES:
        return None
    args, kwargs = fx.node.map_arg((user.args, user.kwargs), lambda each: places if each is node else _number(each))
    if name in ("view", "_unsafe_view"):
        return places.reshape(args[1])  # type: ignore[arg-type]  # a list of sizes
    return user.target(*args, **kwargs)


def _number(node: fx.Node) -> Any:
    """A size that the graph works with, as it was traced."""
    value = node.meta.get("val")
    return torch.empty(size_of(node)) if isinstance(value, Tensor) else hint(value)  # type: ignore[arg-type]
