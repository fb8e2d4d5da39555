"""Where an operator's weight or bias is in the model's tensors, so that it can be written back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from surgeon.groups.coupling import Groups
from surgeon.ir.operators import is_a


@dataclass(frozen=True)
class Slot:
    """An operand `node`: the elements `places` of the model's tensor `name`."""

    node: fx.Node
    name: str
    tensor: Tensor = field(repr=False)
    places: Tensor = field(repr=False)

    def read(self) -> Tensor:
        return self.tensor.detach().flatten()[self.places]

    def write(self, value: Tensor) -> None:
        flat = self.tensor.detach().clone().flatten()
        flat[self.places.flatten()] = value.detach().to(flat).flatten()
        with torch.no_grad():
            self.tensor.copy_(flat.reshape(self.tensor.shape))


class Slots:
    """Finds the slots of a smaller model.

    `copies` maps each node of the original graph to the smaller graph's; `tensors` are those of the model that may be
    written, by name.
    """

    def __init__(self, groups: Groups, copies: Mapping[fx.Node, fx.Node], tensors: Mapping[str, Tensor]) -> None:
        self._graph = groups.graph
        self._copies = copies
        self._tensors = tensors
        self._found: dict[fx.Node, tuple[str, Tensor] | None] = {}
        self._uses: dict[int, list[tuple[fx.Node, fx.Node]]] = {}
        for node in self._graph.nodes:
            if node.op == "get_attr" and (tensor := self._tensor(node)) is not None:
                self._uses.setdefault(id(tensor), []).extend(_ends(node))

    def find(self, operand: object, user: fx.Node) -> Slot | None:
        """The slot of `user`'s operand; None if it is computed, or if another operator reads elements of it."""
        if not isinstance(operand, fx.Node):
            return None
        source = _source(operand)
        tensor = self._tensor(source) if source is not None else None
        if source is None or tensor is None:
            return None
        places = self._places(operand, tensor)
        if not isinstance(places, Tensor):
            return None
        others = [use for use in self._uses[id(tensor)] if use != (operand, user)]
        if others:
            free = torch.ones(tensor.numel(), dtype=torch.bool, device=tensor.device)
            for other, _ in others:
                theirs = self._places(other, tensor)
                free[theirs if isinstance(theirs, Tensor) else slice(None)] = False
            if not free[places].all():
                return None
        return Slot(operand, self._graph.tensors[source.name], tensor, places)

    def _tensor(self, node: fx.Node) -> Tensor | None:
        name = self._graph.tensors.get(node.name, "")
        return self._tensors.get(name, self._tensors.get(self._graph.canonical.get(name, "")))

    def _places(self, node: fx.Node, tensor: Tensor) -> object:
        """The tensor's positions, moved as `node` moves its elements."""
        if node.op == "get_attr":
            return torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape)
        run = self._copies[node]
        first = self._places(node.all_input_nodes[0], tensor)
        return run.target(first, *run.args[1:], **run.kwargs)  # type: ignore[operator]


def _moves(node: fx.Node) -> bool:
    """Whether a node only moves the positions of its single operand."""
    if node.op != "call_function" or len(node.all_input_nodes) != 1:
        return False
    target = node.target
    return target is operator.getitem or is_a(target, "identity", "view", "reorder", "split", "part")


def _source(node: fx.Node) -> fx.Node | None:
    while _moves(node):
        node = node.all_input_nodes[0]
    return node if node.op == "get_attr" else None


def _ends(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Pairs of a node that holds the tensor, perhaps moved, and an operator that computes with it."""
    found = []
    for user in node.users:
        found += _ends(user) if _moves(user) else [(node, user)]
    return found


Finder = Callable[[object, fx.Node], Slot | None]
