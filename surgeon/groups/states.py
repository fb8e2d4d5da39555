"""States that a model takes and gives back, such as those of a recurrent layer that runs on a stream."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from surgeon.frontend.trace import Graph
from surgeon.ir.operators import operator_name
from surgeon.ir.space import Space
from surgeon.rules.base import size_of

REASON = (
    "a state that the model {verb} (to cut it, prune a module around the model that keeps the state to itself, and "
    "take the model out of that)"
)
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def name_states(graph: Graph, space: Space, axes: Mapping[fx.Node, Any]) -> None:
    """Give the reason for pinned units that are those of a state, in place of that they are of an input or output."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    outputs = [leaf for leaf in pytree.tree_leaves(graph.output.args) if isinstance(leaf, fx.Node)]
    pairs = [(a, b) for a in inputs[1:] for b in outputs[1:] if len(size_of(a)) > 1 and size_of(a) == size_of(b)]
    for given, returned in pairs:
        shared = set(_leaves(space, axes, given)) & set(_leaves(space, axes, returned))
        _name(space, shared, "takes and gives back")
    for returned in outputs[1:]:
        if _is_last_state(returned):
            _name(space, set(_leaves(space, axes, returned)), "gives back")


def _name(space: Space, leaves: set[int], verb: str) -> None:
    for leaf in leaves:
        if space.pins.get(leaf) in ("an input of the model", "an output of the model"):
            space.pins[leaf] = REASON.format(verb=verb)


def _is_last_state(node: fx.Node) -> bool:
    """Whether a value is a state after the last step, as a recurrent layer gives it."""
    source = node.args[0] if node.target is operator.getitem else None
    name = operator_name(source) if isinstance(source, fx.Node) else ""
    return name.removeprefix("surgeon::packed_") in _RECURRENT and bool(node.args[1])


def _leaves(space: Space, axes: Mapping[fx.Node, Any], node: fx.Node) -> Iterator[int]:
    """The units of the last axis of a tensor."""
    own = axes.get(node)
    if isinstance(own, tuple) and own:
        yield from (leaf.id for leaf in space.leaves(own[-1]))
