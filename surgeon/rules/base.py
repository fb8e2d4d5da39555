"""What a rule is: it maps the axes of an operator's inputs to those of its outputs, and to its new arguments.

A rule is a function of a node and a `Context`, registered under the names of the ATen operators it covers. It unifies
and pins axes through the context and returns a `Typed`: the axes of the output, what is contracted or reduced, and how
the arguments that depend on widths are written in a smaller graph.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.errors import SurgeryError, first_line
from surgeon.frontend.trace import hint
from surgeon.ir.axes import ONE, Axis, Prod
from surgeon.ir.operators import by_name, operator_name
from surgeon.ir.space import Space

Axes = tuple[Axis, ...]


class RuleDoesNotApply(Exception):
    """A rule does not cover how its operator is called; the message says why."""


class RuleFailure(UserWarning):
    """A rule failed with an unexpected error: its operator is left alone. Please report it."""


def failed(node: fx.Node, error: Exception) -> str:
    """Warn of an unexpected error in a rule; returns the reason to leave its operator alone."""
    reason = f"{where(node)}: the rule failed with {type(error).__name__} ({first_line(error)}), please report it"
    warnings.warn(reason, RuleFailure, stacklevel=2)
    return reason


@dataclass(frozen=True)
class Kept:
    """Which units of each leaf are kept, and what that leaves of any axis."""

    space: Space
    keep: Mapping[int, Sequence[int]]
    widths: Mapping[int, int]

    def width(self, axis: Axis) -> int:
        """How many positions of `axis` are left."""
        return self.space.width(axis, self.widths)

    def changed(self, axis: Axis) -> bool:
        """Whether any position of `axis` is removed."""
        return self.width(axis) != axis.size

    def positions(self, axis: Axis) -> np.ndarray:
        """The positions of `axis` that are left, ascending."""
        return self.space.kept(axis, self.keep)

    def positions_among(self, axis: Axis, count: int) -> np.ndarray:
        """The positions that are left of an axis of a value that has `count` of them.

        These are others than those of `axis` where one of its factors, which is not cut, is of another size in the
        value: the batch, say, where it is of other inputs than the graph was traced with.

        Raises:
            SurgeryError: there is no such factor.
        """
        found = self.positions(axis)
        if count == axis.size:
            return found
        whole = self.space.resolve(axis)
        factors = whole.factors if isinstance(whole, Prod) else (whole,)
        for place, factor in enumerate(factors):
            if not self.changed(factor) and count * factor.size % axis.size == 0:
                left = np.zeros(axis.size, dtype=bool)
                left[found] = True
                one = left.reshape([each.size for each in factors]).take([0], place)
                return np.flatnonzero(one.repeat(count * factor.size // axis.size, place))
        raise SurgeryError(f"an axis of {axis.size} positions is cut, where a value has {count} of them")

    def sizes(self, axes: Sequence[Axis], old: Sequence[Any]) -> list[Any]:
        """New sizes for a list of size arguments: sizes that don't change stay as written, be they symbolic or -1."""
        new: list[Any] = []
        for axis, size in zip(axes, old, strict=True):
            if not self.changed(axis) or (isinstance(size, int) and size < 0):
                new.append(size)
            else:
                new.append(self.width(axis) if isinstance(size, int) else -1)
        return new


Printer = Callable[[Kept], Any]


@dataclass(frozen=True)
class Gain:
    """What multiplies the result of a norm over weights: the tensor that `node` reads.

    The norm is that of the tensor that `of` reads, over its axes `over`.
    """

    node: fx.Node
    of: fx.Node
    over: Axes


@dataclass(frozen=True)
class Typed:
    """What a rule says about a node.

    `out`: the axes of the output, or of each output. `contracted`: axes that are summed over, so that a removed unit's
    contribution is simply missing. `reduced`: axes that a statistic is taken over, which changes when units are
    removed. `macs`: the axes whose sizes multiply to the multiply-accumulate operations, times `scale`; a list of such
    products is added up. `args`: how arguments, by their name in the operator's schema, are written in a smaller
    graph. `target` replaces the operator when any printed argument differs. `gain` is what makes up for a norm that
    removed units are missing from, so that the weights that are left stay the same numbers.
    """

    out: Axes | list[Axes]
    contracted: Axes = ()
    reduced: Axes = ()
    macs: Axes | list[Axes] = ()
    scale: float = 1.0
    args: Mapping[str, Printer] = field(default_factory=dict)
    target: Any = None
    gain: Gain | None = None


class Context:
    """The axes found so far, and the space that records which are the same."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.axes: dict[fx.Node, Axes | list[Axes]] = {}

    def of(self, node: Any) -> Axes:
        """The axes of the tensor that `node` computes; `()` for a number.

        Raises:
            RuleDoesNotApply: it computes several tensors, or one whose axes are not known.
        """
        if not isinstance(node, fx.Node):
            return ()
        axes = self.axes.get(node, ())
        if isinstance(axes, list):
            raise RuleDoesNotApply(f"{node.name} computes several tensors")
        if not axes and size_of(node):
            raise RuleDoesNotApply(f"the axes of {node.name} are not known")
        return axes

    def fresh(self, size: int, pin: str | None = None) -> Axis:
        return self.space.fresh(size, pin)

    def sized(self, size: int, written: Any, why: str) -> Axis:
        """A new axis whose size is an argument; pinned where that is computed: no smaller one could be written."""
        return self.space.fresh(size, None if isinstance(written, int) else why)

    def pinned(self, sizes: Sequence[int], why: str) -> Axes:
        """Fresh axes of these sizes, none of whose units may be removed."""
        return tuple(self.space.fresh(size, why) for size in sizes)

    def pin(self, axes: Sequence[Axis], why: str) -> None:
        for axis in axes:
            self.space.pin(axis, why)

    def pin_all(self, node: Any, why: str) -> None:
        """Pin the axes of each of the tensors that `node` computes."""
        axes = self.axes.get(node, ())
        for each in axes if isinstance(axes, list) else [axes]:
            self.pin(each, why)

    def unify(self, a: Axis, b: Axis, why: str) -> None:
        """As Space.unify. Raises RuleDoesNotApply where the sizes differ."""
        if a.size != b.size:
            raise RuleDoesNotApply(f"axes of {a.size} and {b.size} positions can't be the same axis")
        self.space.unify(a, b, why)

    def divide(self, axis: Axis, sizes: Sequence[int], why: str) -> list[Axis]:
        """As Space.divide. Raises RuleDoesNotApply where `sizes` do not multiply to the size of `axis`."""
        if math.prod(sizes) != axis.size:
            raise RuleDoesNotApply(f"an axis of {axis.size} positions can't be viewed as {tuple(sizes)}")
        return self.space.divide(axis, sizes, why)

    def broadcast(self, operands: Sequence[Axes], why: str) -> Axes:
        """The axes of an elementwise result: operands align at their last axes, and axes of size 1 are stretched."""
        rank = max((len(axes) for axes in operands), default=0)
        out: list[Axis] = []
        for position in range(-rank, 0):
            axis: Axis = ONE
            for axes in operands:
                if len(axes) < -position or axes[position].size == 1:
                    continue
                if axis.size == 1:
                    axis = axes[position]
                else:
                    self.unify(axis, axes[position], why)
            out.append(axis)
        return tuple(out)


Rule = Callable[[fx.Node, dict[str, Any], Context], Typed]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under ATen operator names; a name without an overload covers all of its overloads."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"{name} has a rule already")
            RULES[name] = function
        return function

    return register


def find(target: Any) -> Rule | None:
    """The rule for an operator, or None."""
    name = operator_name(target)
    return (RULES.get(f"{name}.{target._overloadname}") or RULES.get(name)) if name else None


def arguments(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by their names in the operator's schema, defaults filled in."""
    return by_name(node.target, node.args, node.kwargs)


def example_arguments(node: fx.Node) -> dict[str, Any]:
    """As arguments, with numbers that are computed from sizes at the values that they had for the example inputs."""
    return {name: fx.node.map_arg(value, example_number) for name, value in arguments(node).items()}


def example_number(node: fx.Node) -> Any:
    """What a node computed for the example inputs, where that is a number that sizes tell; else the node."""
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) and value.node.has_hint():
        return value.node.hint
    return value if isinstance(value, bool | int | float) else node


# Values of arguments with which an operator draws no random numbers.
_QUIET = {"train": False, "training": False, "dropout_p": 0.0, "dropout": 0.0, "p": 0.0}


def is_random(node: fx.Node) -> bool:
    """Whether the operator draws random numbers, as it is called."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = arguments(node)
    return not any(name in given and given[name] == quiet for name, quiet in _QUIET.items())


def size_of(node: fx.Node) -> tuple[int, ...]:
    """The sizes of the tensor that `node` computes, a dynamic batch at the size it was traced with."""
    value = node.meta.get("val")
    return tuple(hint(size) for size in value.shape) if isinstance(value, Tensor) else ()


def sizes_of(node: fx.Node) -> list[tuple[int, ...]]:
    """The sizes of each of the tensors that `node` computes."""
    value = node.meta.get("val")
    return [tuple(hint(s) for s in v.shape) if isinstance(v, Tensor) else () for v in value or ()]


def dims(value: Any, rank: int) -> list[int]:
    """A dim argument as ascending, non-negative dims; None means all."""
    if value is None or value == []:
        return list(range(rank))
    values = [value] if isinstance(value, int) else list(value)
    return sorted(v % rank for v in values) if rank else []


def where(node: fx.Node) -> str:
    """The node's place in the user's model, for messages."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(list(stack.values())), ("", None))[0] if stack else ""
    path = str(path).removeprefix("L['self'].").removeprefix("L['self']")
    target = node.target
    operator = str(getattr(target, "_opname", None) or getattr(target, "__name__", target))
    return f"{operator} in {path}" if path else operator
