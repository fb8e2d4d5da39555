"""Operators that multiply prunable units by a parameter, and what is measured of their inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.calibration import channels, layers
from surgeon.calibration.layers import Contraction
from surgeon.calibration.moments import Gram, Moments
from surgeon.calibration.parameter_slots import Slots
from surgeon.groups.coupling import Group, Groups

#: Inputs of a layer above which those of a unit, such as a kernel's places, are taken to covary as any other unit's.
WIDE = 1024


@dataclass(frozen=True)
class Reader:
    """An operator that multiplies prunable units by a parameter.

    `moments` are those of its inputs, or of a very wide convolution of its channels, and then `between` is that of the
    `taps` of its kernel, up to a factor; `gradients` (G, o, o) are the sums of g gᵀ over `count` positions of its
    output, which has `positions` for each of `samples`, on average. `units` gives, by leaf, the unit that each input
    belongs to, or -1: (G, f).
    """

    layer: Contraction
    units: dict[int, Tensor]
    moments: Moments = field(default_factory=Moments)
    gradients: Gram = field(default_factory=Gram)
    count: int = 0
    positions: float = 0.0
    samples: int = 0
    between: Tensor = field(default_factory=lambda: torch.ones(1, 1, dtype=torch.float64))

    @property
    def inputs(self) -> int:
        """How many inputs each output is computed from."""
        return self.layer.matrix(self.layer.weight.places).shape[1]

    @property
    def taps(self) -> int:
        """How many inputs in a row share a place in the moments: those of one channel, where it is very wide."""
        return channels.taps_of(self.layer)

    @property
    def means(self) -> Tensor:
        """The mean of each input, (G, f)."""
        return self.moments.means[0].repeat_interleave(self.taps, 1)

    def by_place(self, matrix: Tensor) -> Tensor:
        """A matrix (G, f, o) whose inputs of one place in the moments are side by side: (G, f / taps, taps · o)."""
        return matrix.reshape(len(matrix), matrix.shape[1] // self.taps, -1)

    def measured(self, matrix: Tensor) -> Tensor:
        """A matrix (G, f / taps, taps · o) times the metric of its columns: of the output, and between taps."""
        taps = self.taps
        if taps == 1:
            return matrix @ self.metric
        between = self.between * (taps / self.between.diagonal().sum().clamp(min=1e-300))
        wide = matrix.reshape(*matrix.shape[:2], taps, -1) @ self.metric[:, None]
        return torch.einsum("gcto,ts->gcso", wide, between).reshape(matrix.shape)

    @property
    def metric(self) -> Tensor:
        """The Fisher information (G, o, o) of the operator's output, summed over the positions of a sample."""
        return self.gradients.products * (self.positions / max(self.count, 1))


@dataclass(frozen=True)
class Loose:
    """A value with prunable units that is not the input of a reader.

    `energy`, by leaf, is the sum over samples of the squared effect, to first order, of removing each unit on the
    log-likelihood: `(units,)`.
    """

    node: fx.Node
    energy: dict[int, np.ndarray] = field(default_factory=dict)


def find_readers(groups: Groups) -> tuple[list[Reader], list[Loose]]:
    """The readers and loose values of a model, of which nothing was measured yet."""
    slots = Slots(groups, {node: node for node in groups.graph.nodes}, dict(groups.graph.values))
    readers, loose = [], []
    for node, typed in groups.typed.items():
        if node.op != "call_function":
            continue
        summed = groups.leaves(typed.contracted)
        wanted = [group for group in groups if group.leaf in summed]
        if not wanted:
            continue
        layer = layers.find(node, node, slots.find)
        units = {group.leaf.id: _units(groups, layer, group) for group in wanted} if layer is not None else {}
        if layer is not None:
            readers.append(Reader(layer, {leaf: found for leaf, found in units.items() if found is not None}))
        if missing := [group for group in wanted if units.get(group.leaf.id) is None]:
            operand = next((n for n in node.all_input_nodes if n.op != "get_attr" and _in(groups, n, missing)), None)
            if operand is not None:
                loose.append(Loose(operand, {group.leaf.id: np.zeros(group.size) for group in missing}))
    return readers, loose


def _in(groups: Groups, node: fx.Node, wanted: Iterable[Group]) -> bool:
    axes = groups.axes[node]
    return isinstance(axes, tuple) and {group.leaf for group in wanted} <= groups.leaves(axes)


def _units(groups: Groups, layer: Contraction, group: Group) -> Tensor | None:
    """The unit of a group that each input of a layer belongs to, or -1: (G, f). None where that is not clear.

    Found from where positions along the weight's axes end up when the weight is converted to a matrix.
    """
    axes, shape = groups.axes[layer.weight.node], layer.weight.places.shape
    assert isinstance(axes, tuple)
    found: Tensor | None = None
    for dim, axis in enumerate(axes):
        wide = [1] * len(shape)
        wide[dim] = shape[dim]
        places = layer.matrix(torch.arange(shape[dim]).reshape(wide).expand(shape).contiguous())
        if bool((places != places[:, :, :1]).any()) or bool((places == places[:, :1]).all()):
            continue  # an axis of outputs, or of groups
        for units in groups.space.units(axis, group.leaf):
            here = torch.as_tensor(units)[places[:, :, 0]]
            found = here if found is None else torch.where(here >= 0, here, found)
    return found
