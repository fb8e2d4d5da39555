"""The original with the parameters of its removed units set to zero, run beside the original that has zeros there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.groups.coupling import Groups
from surgeon.groups.gains import erasable
from surgeon.groups.interpreter import Interpreter, double
from surgeon.ir.axes import Axis
from surgeon.rules import Kept, where
from surgeon.verification.masks import removed, without_removed


class Zeroed:
    """Computes the original whose removed units have parameters of zero; buffers are left alone.

    `beside` runs the same graph on the same inputs, with zeros at removed positions of all values. Where an operator
    has the same operands in both runs, its result is taken from there: in most networks, that is so of all that takes
    long, as zeros in parameters make zeros of units.

    Setting parameters to zero removes a unit where its consumers are parameters. Where something else sums over it, it
    must be zero there: if it is not, because an operator made a constant of it, `reason` says that this check does not
    apply.
    """

    def __init__(self, groups: Groups, kept: Kept, inputs: Any, beside: Interpreter) -> None:
        self.reason = ""
        self.outputs: list[Tensor] = []
        self._groups, self._kept, self._beside = groups, kept, beside
        zeroing = without_removed(groups, kept, parameters_only=True)
        self._run = Interpreter(groups.graph, inputs, parameter=zeroing, precision=double)
        self._nodes = iter(self._run)
        self._same: set[fx.Node] = {node for node in groups.graph.nodes if node.op == "get_attr" and self._alike(node)}

    def _alike(self, node: fx.Node) -> bool:
        """Whether a tensor of the model is the same in both runs."""
        name = self._groups.graph.tensors.get(node.name)
        if name is None or isinstance(self._groups.graph.tensor(name), nn.Parameter):
            return True
        return not any(map(self._kept.changed, erasable(self._groups)[name]))

    def shares(self, node: fx.Node) -> bool:
        """Whether a node, the next one, computes the same in both runs, so that its result must be left as it is."""
        return not self.reason and self._same.issuperset(node.all_input_nodes)

    def follow(self, node: fx.Node, computed: Any, value: Any) -> None:
        """Compute the next node, of which the other run has `computed` this, and goes on with `value`."""
        if self.reason:
            return
        assert next(self._nodes) is node
        lost = [axis for axis in self._groups.typed[node].contracted if self._kept.changed(axis)]
        if lost and not any(self._is_zero(operand, lost) for operand in node.all_input_nodes):
            self.reason = f"{where(node)} sums over removed units that are constant but not zero"
            return
        if self._same.issuperset(node.all_input_nodes):
            found, same = computed, computed is value
        else:
            given = {each: self._value(each) for each in node.all_input_nodes}
            found = self._run.evaluate(node, instead=given)
            same = isinstance(found, Tensor) and isinstance(value, Tensor) and torch.equal(found, value)
        if same:
            self._same.add(node)
        self._run.set(node, value if same else found)
        if node.op == "output":
            self.outputs = list(found)
            if any(output.isnan().any() for output in self.outputs if output.is_floating_point()):
                self.reason = "the zeros that stand for removed units become NaN, as 0 / 0 does"

    def _value(self, node: fx.Node) -> Any:
        shared = node.op == "get_attr" and node in self._same
        return (self._beside if shared else self._run).value(node)

    def _is_zero(self, operand: fx.Node, lost: list[Axis]) -> bool:
        return is_zero(self._groups, self._kept, operand, lost, self._value(operand))


def is_zero(groups: Groups, kept: Kept, operand: fx.Node, lost: list[Axis], value: Any) -> bool:
    """Whether an operand's value is zero at the removed positions of one of the axes."""
    axes = groups.axes[operand]
    if not isinstance(axes, tuple) or not isinstance(value, Tensor):
        return False
    wanted = [groups.space.resolve(axis) for axis in lost]
    return any(
        not value.index_select(dim, removed(kept, axis, value, dim)).any()
        for dim, axis in enumerate(axes)
        if groups.space.resolve(axis) in wanted
    )
