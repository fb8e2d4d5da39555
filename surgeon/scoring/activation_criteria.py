"""Criteria based on each unit's activations: how large they are, and how often they are not zero."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from surgeon.calibration.padding import Padding
from surgeon.errors import InvalidArgument
from surgeon.frontend.trace import Inputs
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import Interpreter
from surgeon.scoring.norms import averaged
from surgeon.support.progress import counter

#: The criteria that `scores` knows.
ACTIVATION_CRITERIA = ("activation", "apoz")


@dataclass(frozen=True)
class _Value:
    """A value that an operator sums over the units of a leaf; `units` are the units of the positions along `dim`."""

    leaf: int
    dim: int
    units: np.ndarray
    sums: np.ndarray  # of squares, of what is not zero, and of all: (3, units)


def scores(groups: Groups, batches: Sequence[Inputs], criterion: str) -> dict[int, np.ndarray]:
    """The worth of every unit by the id of the group's leaf, `(units,)` in float64, none negative.

    Activations are the inputs of the operators that sum over the units.

    - "activation": their root mean square, at each reader relative to the mean over units, averaged over readers. As in
      Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017,
      arXiv:1611.06440, with the square for the mean, since it knows no sign.
    - "apoz": the share of them that is not zero, averaged over readers. Hu et al., "Network Trimming: A Data-Driven
      Neuron Pruning Approach towards Efficient Deep Architectures", 2016, arXiv:1607.03250.

    >>> from torch import nn
    >>> from surgeon.groups.coupling import couple
    >>> from surgeon.frontend.trace import trace
    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[3.0], [-1.0]]))
    >>> groups = couple(trace(net, torch.zeros(2, 1)))
    >>> batches = [((torch.tensor([[1.0], [1.0], [1.0], [-1.0]]),), {})]
    >>> [scores(groups, batches, name)[groups.groups[0].leaf.id].round(2).tolist() for name in ACTIVATION_CRITERIA]
    [[1.68, 0.32], [0.75, 0.25]]

    Raises:
        InvalidArgument: there is no such criterion.
    """
    if criterion not in ACTIVATION_CRITERIA:
        raise InvalidArgument(
            f"importance={criterion!r} is not based on activations; choose one of {', '.join(ACTIVATION_CRITERIA)}"
        )
    values, padding = _values(groups), Padding(groups)
    with torch.no_grad(), counter("activations") as progress:
        for done, batch in enumerate(batches):
            progress(done, len(batches))
            _add(groups, values, batch, padding)
    found: dict[int, list[np.ndarray]] = {group.leaf.id: [] for group in groups}
    for value in itertools.chain.from_iterable(values.values()):
        squares, nonzero, count = value.sums
        count = np.maximum(count, 1)
        found[value.leaf].append(nonzero / count if criterion == "apoz" else np.sqrt(squares / count))
    if criterion == "activation":
        return {group.leaf.id: averaged(found[group.leaf.id], group.size) for group in groups}
    return {group.leaf.id: np.mean(found[group.leaf.id] or [np.zeros(group.size)], axis=0) for group in groups}


def _values(groups: Groups) -> dict[fx.Node, list[_Value]]:
    """The inputs of the operators that sum over units of a group."""
    sizes = {group.leaf.id: group.size for group in groups}
    found: dict[fx.Node, list[_Value]] = {}
    for node, typed in groups.typed.items():
        summed = {leaf for axis in typed.contracted for leaf in groups.space.leaves(axis) if leaf.id in sizes}
        for operand in node.all_input_nodes:
            axes = groups.axes[operand]
            if operand.op == "get_attr" or operand in found or not isinstance(axes, tuple) or not summed:
                continue
            mine = [
                _Value(leaf.id, dim, units, np.zeros((3, leaf.size)))
                for dim, axis in enumerate(axes)
                for leaf in sorted(summed, key=lambda leaf: leaf.id)
                if leaf in groups.space.leaves(axis)
                for units in groups.space.units(axis, leaf)
            ]
            if mine:
                found[operand] = mine
    return found


def _add(groups: Groups, values: dict[fx.Node, list[_Value]], batch: Inputs, padding: Padding) -> None:
    run = Interpreter(groups.graph, batch)
    for node in run:
        value = run.compute(node)
        shown = padding.shown(node, batch) if node in values else None
        for each in values.get(node, ()):
            rows = value.movedim(each.dim, 0).reshape(value.shape[each.dim], -1).float()
            if shown is not None:
                rows = rows[:, shown.expand(value.shape).movedim(each.dim, 0).reshape(rows.shape)[0]]
            inside = np.flatnonzero(each.units >= 0)
            of = (rows.square().sum(1), (rows != 0).sum(1), torch.full((len(rows),), rows.shape[1]))
            for row, numbers in enumerate(of):
                numbers = numbers.double().cpu().numpy()
                each.sums[row] += np.bincount(each.units[inside], numbers[inside], each.sums.shape[1])
