"""Which units of which tensors are removed together, and why the others can't be removed."""

from __future__ import annotations

import html
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.frontend.free_sizes import FreeSizes
from surgeon.frontend.trace import Graph
from surgeon.groups.gains import Balance, balances, held
from surgeon.groups.states import name_states
from surgeon.ir.axes import Axis, Leaf
from surgeon.ir.space import Space
from surgeon.rules import Axes, Context, Kept, RuleDoesNotApply, Typed, example_arguments, failed, find, where
from surgeon.rules.base import size_of, sizes_of
from surgeon.support.arguments import instance


@dataclass(frozen=True)
class Member:
    """One axis of one tensor that contains the units of a group."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class Group:
    """Units that can be removed one by one, each from all of the group's members."""

    name: str
    leaf: Leaf
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        return self.leaf.size


@dataclass(frozen=True)
class Pinned:
    """An axis of a tensor that keeps all of its positions, and why."""

    tensor: str
    axis: int
    size: int
    reason: str


def without_place(reason: str) -> str:
    """A pin's reason without the operators that it names, so that equal ones can be counted.

    >>> without_place("conv2d in conv1: kernel axis; conv2d in conv2: kernel axis")
    'kernel axis'
    """
    return "; ".join(dict.fromkeys(part.rpartition(": ")[2] for part in reason.split("; ")))


@dataclass(frozen=True)
class Groups:
    """The coupled units of a graph, as `couple` finds them.

    `sizes` says which sizes of the inputs the model leaves free, where that was asked. `gains` are the tensors, by
    canonical name, that make up for norms of weights which units are removed from.
    """

    graph: Graph
    space: Space = field(repr=False)
    typed: Mapping[fx.Node, Typed] = field(repr=False)
    axes: Mapping[fx.Node, Axes | list[Axes]] = field(repr=False)
    tensors: Mapping[str, Axes] = field(repr=False)
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    sizes: FreeSizes | None = None
    gains: Mapping[str, Balance] = field(repr=False, default_factory=dict)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def names(self) -> dict[int, str]:
        """Group names by leaf."""
        return {group.leaf.id: group.name for group in self.groups}

    @cached_property
    def held(self) -> set[fx.Node]:
        """The operators on weights that compute the same whatever is removed, see `held`."""
        return held(self)

    def leaves(self, axes: Iterable[Axis]) -> set[Leaf]:
        """The leaves that some axes consist of."""
        return {leaf for axis in axes for leaf in self.space.leaves(axis)}

    def axes_of(self, node: fx.Node) -> list[Axes]:
        """The axes of each of the tensors that a node computes."""
        axes = self.axes.get(node, ())
        return axes if isinstance(axes, list) else [axes]

    def holds(self, node: fx.Node, leaf: Leaf) -> bool:
        """Whether units of a leaf are part of what a node computes."""
        return any(leaf in self.leaves(axes) for axes in self.axes_of(node))

    def kept(self, keep: Mapping[int, Iterable[int]]) -> Kept:
        """What is left of every axis, given the kept units of some leaves."""
        units = {leaf: sorted(kept) for leaf, kept in keep.items()}
        return Kept(self.space, units, {leaf: len(kept) for leaf, kept in units.items()})

    def reductions(self, kept: Kept) -> list[tuple[fx.Node, Axis]]:
        """Operators that take a statistic over an axis that loses positions."""
        return [
            (node, axis)
            for node, typed in self.typed.items()
            for axis in typed.reduced
            if kept.changed(axis)
        ]

    def _repr_html_(self) -> str:
        """The groups in a notebook: a row each, with the tensors folded; and the pinned axes, folded."""
        rows = "".join(
            f"<tr><td>{html.escape(group.name)}</td><td style='text-align:right'>{group.size}</td><td><details>"
            f"<summary>{len(group.members)} tensors</summary>"
            + "<br>".join(html.escape(f"{member.tensor} axis {member.axis}") for member in group.members)
            + "</details></td></tr>"
            for group in self.groups
        )
        pins = "<br>".join(
            html.escape(f"{pin.tensor} axis {pin.axis} ({pin.size}): {pin.reason}") for pin in self.pinned
        )
        return (
            f"<table><tr><th>group</th><th>units</th><th></th></tr>{rows}</table>"
            f"<details><summary>{len(self.pinned)} pinned axes</summary>{pins}</details>"
        )

    def to_json(self) -> dict[str, Any]:
        """The groups, the pinned axes and the free sizes of the inputs, as plain JSON values."""
        return {
            "groups": [
                {"name": group.name, "size": group.size, "members": [asdict(member) for member in group.members]}
                for group in self.groups
            ],
            "pinned": [asdict(pin) for pin in self.pinned],
            "inputs": str(self.sizes or "").splitlines(),
        }

    def __str__(self) -> str:
        lines = []
        for group in self.groups:
            lines.append(f"group {group.name}: {group.size} units")
            for member in group.members:
                axes = ", ".join(self.space.text(axis, self.names) for axis in self.tensors[member.tensor])
                lines.append(f"  {member.tensor} axis {member.axis}  [{axes}]")
        lines += [f"pinned {pin.tensor} axis {pin.axis} ({pin.size}): {pin.reason}" for pin in self.pinned]
        lines += [f"input {line}" for line in str(self.sizes or "").splitlines()]
        return "\n".join(lines)


GROUPS = instance(Groups, "the groups that surgeon.inspect returns")


def couple(graph: Graph, ignore: Callable[[str], bool] | None = None) -> Groups:
    """Apply the axis rules to all operators of `graph`.

    `ignore` says of a tensor's name whether all of its axes are pinned.
    """
    context = Context(Space())
    tensors: dict[str, Axes] = {}
    typed: dict[fx.Node, Typed] = {}
    beside: dict[fx.Node, Typed] = {}
    for each, into in ((graph, typed), (graph.train_only, beside)):
        for node in each.nodes if each is not None else ():
            into[node] = _type(node, each or graph, context, tensors, graph.canonical)
            context.axes[node] = into[node].out
    gains: dict[str, Balance] = {}
    for each, of in ((graph.train_only, beside), (graph, typed)):
        if each is not None:
            gains |= balances(each, of, graph.canonical, context.pin)
    axes_by_name = {name: tensors[graph.canonical[name]] for name in graph.values}
    for name, axes in axes_by_name.items():
        if ignore is not None and ignore(name):
            context.pin(axes, "left alone, as asked by ignore")
    space = context.space
    name_states(graph, space, context.axes)
    _pin_unread(space, (*typed.values(), *beside.values()), axes_by_name)
    groups = _groups(graph, space, axes_by_name)
    pinned = _pinned(graph, space, axes_by_name)
    return Groups(graph, space, typed, context.axes, axes_by_name, groups, pinned, gains=gains)


def _type(
    node: fx.Node, graph: Graph, c: Context, tensors: dict[str, Axes], canonical: Mapping[str, str]
) -> Typed:
    match node.op:
        case "placeholder":
            return Typed(c.pinned(size_of(node), "an input of the model"))
        case "get_attr":
            own = graph.tensors.get(node.name)
            if own is None:
                return Typed(())
            name = canonical.get(own, graph.canonical[own])
            if name not in tensors:
                tensors[name] = tuple(c.fresh(size) for size in graph.tensor(own).shape)
            return Typed(tensors[name])
        case "output":
            ends = pytree.tree_leaves(node.args)
            for leaf in ends[: len(ends) - graph.inner]:
                c.pin_all(leaf, "an output of the model")
            return Typed(())
    if node.target is operator.getitem:
        source, index = node.args
        axes = c.axes[source]  # type: ignore[index]
        return Typed(axes[index] if isinstance(axes, list) else ())  # type: ignore[index]
    return _operator(node, c)


def _operator(node: fx.Node, c: Context) -> Typed:
    rule = find(node.target)
    reason = f"{where(node)}: surgeon has no rule for this operator"
    if rule is not None:
        try:
            typed = rule(node, example_arguments(node), c)
        # What the rule unified before it gave up only couples more than needed, which is safe; the rest is pinned.
        except RuleDoesNotApply as error:
            reason = f"{where(node)}: the rule does not cover these arguments ({error})"
        except Exception as error:  # noqa: BLE001  (a rule that is wrong about one operator must not stop the run)
            reason = failed(node, error)
        else:
            if _fits(node, typed):
                return typed
            reason = f"{where(node)}: the rule's shapes are not the operator's"
    for operand in node.all_input_nodes:
        c.pin_all(operand, reason)
    if isinstance(node.meta.get("val"), tuple | list):
        return Typed([c.pinned(size, reason) for size in sizes_of(node)])
    return Typed(c.pinned(size_of(node), reason))


def _fits(node: fx.Node, typed: Typed) -> bool:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return isinstance(typed.out, tuple) and tuple(axis.size for axis in typed.out) == size_of(node)
    if not isinstance(value, tuple | list):
        return True
    return isinstance(typed.out, list) and len(typed.out) == len(value) and all(
        tuple(axis.size for axis in axes) == sizes
        for axes, sizes, each in zip(typed.out, sizes_of(node), value, strict=True)
        if isinstance(each, Tensor) and each.numel()
    )


def _pin_unread(space: Space, typed: Iterable[Typed], tensors: Mapping[str, Axes]) -> None:
    """Pin units that nothing sums over, such as the rows of a position table: no consumer would get smaller."""
    read = {
        leaf.id
        for result in typed
        for axis in (*result.contracted, *result.reduced)
        for leaf in space.leaves(axis)
    }
    for axes in tensors.values():
        for axis in axes:
            for leaf in space.leaves(axis):
                if leaf.id not in read:
                    space.pin(leaf, "no operator sums over these units, so nothing would get cheaper")


def _groups(graph: Graph, space: Space, tensors: Mapping[str, Axes]) -> tuple[Group, ...]:
    members: dict[Leaf, list[Member]] = {}
    for name, axes in tensors.items():
        for index, axis in enumerate(axes):
            for leaf in dict.fromkeys(space.leaves(axis)):
                if leaf.id not in space.pins:
                    members.setdefault(leaf, []).append(Member(name, index))
    learnt = {name for name, value in graph.values.items() if isinstance(value, nn.Parameter)}
    named: Counter[str] = Counter()
    groups = []
    for leaf, found in members.items():
        own = [member for member in found if member.tensor in learnt]
        if not own:
            continue
        producer = next((member for member in own if member.axis == 0), own[0])
        base = producer.tensor.rpartition(".")[0] or producer.tensor
        named[base] += 1
        name = base if named[base] == 1 else f"{base}#{named[base]}"
        groups.append(Group(name, leaf, tuple(found)))
    return tuple(groups)


def _pinned(graph: Graph, space: Space, tensors: Mapping[str, Axes]) -> tuple[Pinned, ...]:
    found = []
    for name, axes in tensors.items():
        if not isinstance(graph.values[name], nn.Parameter):
            continue
        for index, axis in enumerate(axes):
            reasons = dict.fromkeys(space.pins[leaf.id] for leaf in space.leaves(axis) if leaf.id in space.pins)
            if axis.size > 1 and reasons:
                found.append(Pinned(name, index, axis.size, "; ".join(reasons)))
    return tuple(found)
