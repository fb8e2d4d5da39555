"""The cost of a network as a function of the widths of its groups: multiply-accumulate operations and parameters.

The size of every axis is a polynomial in the widths of the groups, and so is every cost. The polynomial is computed
once and then evaluated at any widths.

>>> import torch
>>> from torch import nn
>>> from surgeon.groups.coupling import couple
>>> from surgeon.frontend.trace import trace
>>> groups = couple(trace(nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 5)), torch.zeros(2, 10)))
>>> cost = Cost(groups)
>>> cost.macs({}), cost.params({})
(120.0, 133)
>>> hidden = groups.groups[0].leaf.id
>>> cost.macs({hidden: 4}), cost.params({hidden: 4}), cost.channels({hidden: 4})
(60.0, 69, 4)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import assert_never

import numpy as np
import torch
from torch import fx, nn

from surgeon.groups.coupling import Groups
from surgeon.ir.axes import Axis, Leaf, Prod, Sum
from surgeon.ir.polynomial import Polynomial, Terms, evaluate, product_of, sum_of
from surgeon.rules import where
from surgeon.support.arguments import BUDGETS, choice

Widths = Mapping[int, int]

# The cost of moving one element to or from memory, in multiply-accumulate operations: about the balance of a CPU core,
# with 50 billion operations and 8 GB per second. It is used only to rank groups by the time that their MACs take.
MACS_PER_ELEMENT = 24.0


@dataclass(frozen=True)
class Share:
    """The share of one operator or tensor in a cost: a polynomial, and the weights that are read."""

    label: str
    tensors: tuple[str, ...]
    terms: Terms = field(repr=False)

    def at(self, widths: Widths, sizes: Widths) -> float:
        """The cost at these widths; leaves that are not given keep their size."""
        return float(evaluate(self.terms, {**sizes, **widths}))


class Cost:
    """The costs of the graph of `groups` as functions of the widths of their leaves."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.sizes: dict[int, int] = {group.leaf.id: group.size for group in groups}
        self.order: dict[int, int] = {leaf: place for place, leaf in enumerate(self.sizes)}
        self._axes: dict[Axis, Terms] = {}
        self._polynomials: dict[str, Polynomial] = {}

    def macs(self, widths: Widths) -> float:
        """Multiply-accumulate operations per sample."""
        return self.polynomial("macs")(self.vector(widths))

    def params(self, widths: Widths) -> int:
        """The number of parameters, tied ones counted once."""
        return round(self.polynomial("params")(self.vector(widths)))

    def channels(self, widths: Widths) -> int:
        """The number of units of all groups."""
        return sum(widths.get(leaf, size) for leaf, size in self.sizes.items())

    def of(self, budget: str) -> Callable[[Widths], float]:
        """The cost function of a budget.

        Raises:
            InvalidArgument: there is no such budget.
        """
        return {"macs": self.macs, "params": self.params, "channels": self.channels}[self.check(budget)]

    def check(self, budget: object) -> str:
        """Return `budget` if it is the name of one."""
        return str(choice(*BUDGETS)("budget", budget))

    def vector(self, widths: Widths) -> np.ndarray:
        """The widths in the order of the polynomials, `(groups,)`."""
        return np.array([widths.get(leaf, size) for leaf, size in self.sizes.items()], dtype=np.float64)

    def polynomial(self, budget: str) -> Polynomial:
        name = self.check(budget)
        if name not in self._polynomials:
            self._polynomials[name] = Polynomial(sum_of(share.terms for share in self.shares(name)), self.order)
        return self._polynomials[name]

    def shares(self, budget: str) -> list[Share]:
        """The operators ("macs"), parameters ("params") or groups ("channels") that make up the cost."""
        match self.check(budget):
            case "macs":
                return self._operators
            case "params":
                return self._parameters
            case _:
                return [Share(group.name, (), {(group.leaf.id,): 1.0}) for group in self.groups]

    def inside(self) -> tuple[dict[int, set[int]], set[int]] | None:
        """What `Alignment` asks of groups, where it is not told by the axes of the weights."""
        return None

    def explain(self, budget: str, widths: Widths, most: int) -> list[str]:
        """The `most` largest shares of the cost at these widths, each with what pins the weights that it reads."""
        pins = {pin.tensor: pin for pin in sorted(self.groups.pinned, key=lambda pin: pin.size)}
        total = self.of(budget)({}) or 1
        shares = sorted(((share.at(widths, self.sizes), share) for share in self.shares(budget)), key=lambda s: -s[0])
        lines = []
        for value, share in shares[:most]:
            found = [pins[name] for name in share.tensors if name in pins][:1]
            why = [f": {pin.tensor} axis {pin.axis} ({pin.size}) stays, {pin.reason}" for pin in found]
            lines.append(f"{value / total:.1%} in {share.label}{''.join(why)}")
        return lines

    @cached_property
    def time(self) -> Polynomial:
        """A rough estimate of the time per sample, in units of one MAC: the operations and the elements they move."""
        moved = (self._moved(node) for node in self.groups.graph.nodes)
        elements = sum_of(product_of([part, {(): MACS_PER_ELEMENT / self._batch}]) for part in moved if part)
        weights = sum_of(product_of([share.terms, {(): MACS_PER_ELEMENT}]) for share in self._parameters)
        return Polynomial(sum_of([*(share.terms for share in self._operators), elements, weights]), self.order)

    @property
    def _batch(self) -> int:
        return max(self.groups.graph.batch, 1)

    @cached_property
    def _operators(self) -> list[Share]:
        found = []
        for node, typed in self.groups.typed.items():
            products = typed.macs if isinstance(typed.macs, list) else [typed.macs] if typed.macs else []
            terms = sum_of(self._volume(axes, typed.scale / self._batch) for axes in products)
            if terms:
                found.append(Share(where(node), weights_of(node, self.groups), terms))
        return found

    @cached_property
    def _parameters(self) -> list[Share]:
        graph = self.groups.graph
        found: dict[str, Share] = {}
        for name, axes in self.groups.tensors.items():
            if isinstance(graph.values[name], nn.Parameter):
                found.setdefault(graph.canonical[name], Share(name, (name,), self._volume(axes, 1.0)))
        return list(found.values())

    def _moved(self, node: fx.Node) -> Terms:
        """The elements that an operator writes, and those that it reads if it multiplies and accumulates."""
        axes = self.groups.axes.get(node)
        if node.op != "call_function" or not isinstance(axes, tuple) or _is_view(node):
            return {}
        parts = [self._volume(axes, 1.0)]
        if self.groups.typed[node].macs:
            for operand in node.all_input_nodes:
                read = self.groups.axes.get(operand)
                if operand.op != "get_attr" and isinstance(read, tuple):
                    parts.append(self._volume(read, 1.0))
        return sum_of(parts)

    def _volume(self, axes: Iterable[Axis], scale: float) -> Terms:
        return product_of([{(): scale}, *map(self.size, axes)])

    def size(self, axis: Axis) -> Terms:
        """The size of an axis as a polynomial, in which leaves that can't be pruned are numbers."""
        if axis not in self._axes:
            self._axes[axis] = self._expand(self.groups.space.resolve(axis))
        return self._axes[axis]

    def _expand(self, axis: Axis) -> Terms:
        match axis:
            case Leaf():
                return {(axis.id,): 1.0} if axis.id in self.sizes else {(): float(axis.size)}
            case Prod():
                return product_of(map(self._expand, axis.factors))
            case Sum():
                return sum_of(self._expand(term) for term in axis.terms)
            case _:
                assert_never(axis)


def positions_inside(axis: Axis, positions: int = 1) -> Iterator[tuple[int, int]]:
    """For each occurrence of a leaf in the axis: its id, and how many contiguous positions each of its units has."""
    match axis:
        case Prod():
            for factor in reversed(axis.factors):
                yield from positions_inside(factor, positions)
                positions *= factor.size
        case Sum():
            for term in axis.terms:
                yield from positions_inside(term, positions)
        case Leaf():
            yield axis.id, positions
        case _:
            assert_never(axis)


def products(axis: Axis) -> Iterator[tuple[Axis, ...]]:
    """The factors of every product in the axis."""
    match axis:
        case Prod():
            yield axis.factors
            for factor in axis.factors:
                yield from products(factor)
        case Sum():
            for term in axis.terms:
                yield from products(term)
        case Leaf():
            pass
        case _:
            assert_never(axis)


def weights_of(node: fx.Node, groups: Groups) -> tuple[str, ...]:
    """The parameters that an operator reads, directly or through views."""
    found: list[str] = []
    for operand in node.all_input_nodes:
        while operand.op == "call_function" and len(operand.all_input_nodes) == 1 and _is_view(operand):
            operand = operand.all_input_nodes[0]
        name = groups.graph.tensors.get(operand.name) if operand.op == "get_attr" else None
        if name is not None:
            found.append(name)
    return tuple(found)


def _is_view(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and any(r.alias_info is not None for r in target._schema.returns)
