"""Operators that masked parameters alone don't take care of: they must be told which positions are kept.

These are statistics over masked units, and sums over masked units that are not zero because an operator such as the
sigmoid made nonzero constants of their zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx, nn

from surgeon.groups.coupling import Groups
from surgeon.groups.gains import erasable
from surgeon.groups.interpreter import Interpreter, double, precisely
from surgeon.ir.axes import Axis
from surgeon.rules import Axes, Kept, arguments, where
from surgeon.surgery.attributes import module_call, module_path
from surgeon.training.masked_statistics import Interceptor, Site, operator_name
from surgeon.verification.check import checked_inputs
from surgeon.verification.masks import with_zeros
from surgeon.verification.reference import STATISTICS
from surgeon.verification.zeroed import is_zero


def kept_mask(axes: Axes, kept: Kept) -> Tensor:
    """True at the positions of a tensor whose units are all kept."""
    return with_zeros(torch.ones([axis.size for axis in axes], dtype=torch.bool), axes, kept)


def interceptors(groups: Groups, kept: Kept, model: nn.Module) -> tuple[list[Interceptor], list[str]]:
    """The sites, by the modules whose code they are in, and notes about those that can't be intercepted."""
    sites, notes = _sites(groups, kept)
    calls: dict[str, dict[str, list[fx.Node]]] = {}
    for node in groups.graph.nodes:
        if node.op == "call_function" and (call := module_call(node)) is not None:
            calls.setdefault(call[0], {}).setdefault(call[1], []).append(node)
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for path in dict.fromkeys(module_path(node) for node in sites):
        here = [node for node in sites if module_path(node) == path]
        if path is None or path not in modules:
            notes += [f"{sites[node].place}: it is in the code of no module" for node in here]
            continue
        names = {operator_name(node.target) for node in here}
        (first, counted), *others = (_of_call(nodes, names, sites) for nodes in calls[path].values())
        alike = all(
            number == counted and own.keys() == first.keys() and all(own[key].same(first[key]) for key in own)
            for own, number in others
        )
        if alike:
            found.append(Interceptor(path, first, counted))
        else:
            notes.append(f"{sites[here[0]].place}: the module is called several times, on different units")
    return found, notes


def _of_call(
    nodes: Iterable[fx.Node], names: set[str], sites: Mapping[fx.Node, Site]
) -> tuple[dict[tuple[str, int], Site], dict[str, int]]:
    """The sites of one call by operator name and index, and the number of operators of each name."""
    own: dict[tuple[str, int], Site] = {}
    seen: Counter[str] = Counter()
    for node in nodes:
        name = operator_name(node.target)
        if name in names:
            if node in sites:
                own[name, seen[name]] = sites[node]
            seen[name] += 1
    return own, dict(seen)


def _sites(groups: Groups, kept: Kept) -> tuple[dict[fx.Node, Site], list[str]]:
    """The operators that masked parameters alone don't take care of, and notes about those that nothing can."""
    found: dict[fx.Node, Site] = {}
    notes: list[str] = []

    axes = erasable(groups)

    def zeroing(name: str, value: Tensor) -> Tensor:
        parameter = isinstance(groups.graph.tensor(name), nn.Parameter)
        return with_zeros(value, axes[name], kept) if parameter else value

    run = Interpreter(groups.graph, checked_inputs(groups.graph), parameter=zeroing, precision=double)
    with precisely():
        for node in run:
            typed = groups.typed[node]
            lost = [axis for axis in typed.contracted if kept.changed(axis)]
            if any(kept.changed(axis) for axis in typed.reduced):
                name = node.target._opname  # type: ignore[union-attr]
                if name in STATISTICS:
                    found[node] = _site(groups, kept, node, STATISTICS[name][0], typed.reduced, statistic=True)
                else:
                    notes.append(f"{where(node)}: {name} has no formula over kept units only")
            elif lost and not any(
                is_zero(groups, kept, operand, lost, run.value(operand)) for operand in node.all_input_nodes
            ):
                operand = _operand(groups, node, lost)
                if operand is None:
                    notes.append(f"{where(node)}: it sums over masked units that are not zero")
                else:
                    found[node] = _site(groups, kept, node, operand, lost, statistic=False)
            run.compute(node)
    return found, notes


def _site(groups: Groups, kept: Kept, node: fx.Node, operand: str, over: Iterable[Axis], statistic: bool) -> Site:
    """The node as a site; of its operand, only axes count that share units with the axes that are summed `over`."""
    axes = groups.axes[arguments(node)[operand]]
    assert isinstance(axes, tuple)
    summed = {leaf.id for axis in over for leaf in groups.space.leaves(axis)}
    keep = {
        dim: kept_mask((axis,), kept)
        for dim, axis in enumerate(axes)
        if kept.changed(axis) and any(leaf.id in summed for leaf in groups.space.leaves(axis))
    }
    return Site.of(node, where(node), operand, keep, statistic)


def _operand(groups: Groups, node: fx.Node, lost: list[Axis]) -> str | None:
    """The argument name of an operand that has one of the axes."""
    wanted = [groups.space.resolve(axis) for axis in lost]
    for name, value in arguments(node).items():
        axes = groups.axes.get(value, ()) if isinstance(value, fx.Node) else ()
        if isinstance(axes, tuple) and any(groups.space.resolve(axis) in wanted for axis in axes):
            return name
    return None
