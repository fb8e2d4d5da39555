"""What a graph asks of the sizes of its inputs, written into it and checked when it is called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from torch import fx, nn

from surgeon.errors import InvalidInputs
from surgeon.frontend.free_sizes import FreeSizes
from surgeon.ir.size_conditions import Condition

NAME: Final = "input_sizes"
#: Characters of a condition that tells a reader nothing any more.
LONG = 120


class InputSizes(nn.Module):
    """Refuses inputs of sizes that the graph was not made for; computes nothing.

    >>> import torch
    >>> from surgeon.frontend.free_sizes import Size
    >>> check = InputSizes(FreeSizes((Size("x", 0, 0, 2, 3), Size("x", 0, 1, 5, reason="it loops over it"))))
    >>> check(torch.zeros(7, 5))
    >>> check(torch.zeros(2, 6))
    Traceback (most recent call last):
    ...
    surgeon.errors.InvalidInputs: x has size 6 at axis 1, and this graph takes 5: it loops over it
    """

    _is_impure = True  # as torch.fx asks, before it removes what nothing reads

    def __init__(self, sizes: FreeSizes, conditions: Iterable[Condition] = ()) -> None:
        super().__init__()
        leaves = {each.leaf: each.input for each in sizes}
        self.leaves = tuple(leaves)
        self.ranks = tuple((place, leaves[leaf], sum(each.leaf == leaf for each in sizes))
                           for place, leaf in enumerate(self.leaves))
        at = {leaf: place for place, leaf in enumerate(self.leaves)}
        self.fixed = tuple(
            (at[each.leaf], each.axis, each.size, each.input, each.reason) for each in sizes if not each.free
        )
        self.names = {each.place: f"{each.input} axis {each.axis}" for each in sizes}
        self.conditions = tuple(conditions)

    def forward(self, *inputs: Any) -> None:
        for place, name, rank in self.ranks:
            if inputs[place].dim() != rank:
                raise InvalidInputs(
                    f"{name} has {inputs[place].dim()} axes, and this graph takes {rank}: it was traced with an input "
                    f"of {rank} axes"
                )
        for place, axis, size, name, reason in self.fixed:
            if inputs[place].shape[axis] != size:
                raise InvalidInputs(
                    f"{name} has size {inputs[place].shape[axis]} at axis {axis}, and this graph takes {size}: {reason}"
                )
        for condition in self.conditions:
            read = {
                (leaf, axis): inputs[self.leaves.index(leaf)].shape[axis] for leaf, axis in sorted(condition.places())
            }
            # While the graph is exported, sizes are symbols, of which nothing is to be assumed.
            if all(isinstance(size, int) for size in read.values()) and not condition.holds(read):
                given = ", ".join(f"{self.names[place]} is {size}" for place, size in read.items())
                text = condition.text(self.names)
                raise InvalidInputs(
                    f"{given}, and this graph takes sizes with {text if len(text) < LONG else 'another relation'}: the "
                    "model's code branches on these sizes, and the graph has the branch that the example inputs took"
                )

    def extra_repr(self) -> str:
        fixed = [f"{name} axis {axis}: {size}" for _, axis, size, name, _ in self.fixed]
        return ", ".join([*fixed, *(condition.text(self.names) for condition in self.conditions)])


def check_on_entry(module: fx.GraphModule, sizes: FreeSizes, conditions: Iterable[Condition]) -> None:
    """Let a graph refuse, in front of everything else, sizes that it was not made for."""
    check = InputSizes(sizes, conditions)
    name = NAME
    while hasattr(module, name):
        name += "_"
    module.add_submodule(name, check)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    with module.graph.inserting_after(inputs[-1]):
        module.graph.call_module(name, tuple(inputs[leaf] for leaf in check.leaves))
    module.recompile()


def is_check(module: nn.Module) -> bool:
    return isinstance(module, InputSizes)
