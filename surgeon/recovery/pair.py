"""The graphs of the original and the smaller model, with the tensors of the model that is recovered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import Interpreter
from surgeon.rules import Kept
from surgeon.surgery.rewrite import slim_graph
from surgeon.surgery.tensors import slim_tensors
from surgeon.verification.masks import gathered


class Pair:
    """Both graphs, to be run in lockstep.

    `tensors` are the smaller model's, by name. `slim` is its graph, `copies` maps each node of the original to the
    smaller graph's, and `own` are the tensors that it reads, by name. `changed` are the nodes of the original whose
    values, at the kept positions, may differ in the smaller model.
    """

    def __init__(self, groups: Groups, kept: Kept, tensors: Mapping[str, Tensor]) -> None:
        self.groups, self.kept = groups, kept
        self.slim, copies = slim_graph(groups, kept)
        self.copies = {**copies, groups.graph.output: next(iter(reversed(self.slim.nodes)))}
        rest = slim_tensors(groups, kept)
        canonical = groups.graph.canonical
        self.own = {name: tensors.get(name, tensors.get(canonical[name], rest[name])) for name in rest}
        self.changed = self._changed()

    def original(self, *batches: Any) -> Interpreter:
        return Interpreter(self.groups.graph, *batches)

    def smaller(self, *batches: Any, tensors: Mapping[str, Tensor]) -> Interpreter:
        return Interpreter(self.groups.graph, *batches, graph=self.slim, parameter=lambda name, _: tensors[name])

    def at_kept(self, node: fx.Node, value: Any) -> Any:
        """The value of a node of the original at the positions that the smaller model has."""
        return self._at_kept(value, self.groups.axes[node])

    def _at_kept(self, value: Any, axes: Any) -> Any:
        if isinstance(value, tuple | list) and isinstance(axes, list):
            return [self._at_kept(each, own) for each, own in zip(value, axes, strict=False)]
        both = isinstance(value, Tensor) and isinstance(axes, tuple)
        return gathered(value, axes, self.kept) if both else value

    def _changed(self) -> set[fx.Node]:
        graph = self.groups.graph
        found: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == "get_attr":
                name, axes = graph.tensors.get(node.name), self.groups.axes[node]
                cut = isinstance(axes, tuple) and any(self.kept.changed(axis) for axis in axes)
                if name is not None and (cut or not torch.equal(self.own[name], graph.tensor(name))):
                    found.add(node)
            elif any(operand in found for operand in node.all_input_nodes):
                found.add(node)
        return found
