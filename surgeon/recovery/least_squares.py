"""Closed-form compensation: each layer's remaining inputs take over the part of those that were removed.

Least squares of a layer's output on its remaining inputs, as in He et al., "Channel Pruning for Accelerating Very Deep
Neural Networks", ICCV 2017, here for any coupled groups, and with a ridge toward the sliced weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from surgeon.calibration import batch_norm, channels, layers
from surgeon.calibration.batch_norm import BatchNorm
from surgeon.calibration.data import Calibration
from surgeon.calibration.fisher import MOVED
from surgeon.calibration.layers import Contraction
from surgeon.calibration.moments import Moments
from surgeon.calibration.padding import Padding
from surgeon.calibration.parameter_slots import Slot, Slots
from surgeon.frontend.trace import batch_size
from surgeon.groups.coupling import Groups
from surgeon.ir.operators import operator_name
from surgeon.recovery.lockstep import Lockstep
from surgeon.recovery.merging import merged
from surgeon.recovery.report import Layer
from surgeon.rules import Kept, arguments, where
from surgeon.rules.base import size_of

#: Rows that moments are computed from: this many for each input of a layer, within this many operations.
ROWS_PER_INPUT = 40
FEWEST_ROWS = 4096
MOST_OPERATIONS = 2e11
#: What is tried on the data held back, for each layer.
CANDIDATES = ("nothing", "bias", "weights")
#: A layer whose output deviates by less is left as it is.
EXACT = 1e-6


@dataclass
class Corrected:
    """The layers and batch norms that were corrected, and the samples that the first and the last layers saw."""

    layers: list[Layer] = field(default_factory=list)
    batch_norms: int = 0
    samples: tuple[int, int] = (0, 0)


class Compensation:
    """Runs the original and the smaller model in lockstep, and corrects the smaller one on the way, in a single pass.

    `tensors` are the smaller model's, by name; they are written to. Each operator is corrected, and then run on all
    batches before the next one, so that layers are fitted to their final inputs.

    On noise, in a model without norms, activations are of no scale that means anything. There, each layer is fitted
    separately instead, to the original's inputs and without a bias: weights on removed units are merged into those on
    units that are kept. This is Srinivas and Babu, "Data-free Parameter Pruning for Deep Neural Networks", BMVC 2015,
    for units that resemble several others.
    """

    def __init__(
        self, groups: Groups, kept: Kept, tensors: Mapping[str, Tensor], data: Calibration, *, ridge: float,
        batch_norm: bool, compensate: bool,
    ) -> None:
        self.data, self.ridge, self.batch_norm, self.compensate = data, ridge, batch_norm, compensate
        self.both = Lockstep(groups, kept, tensors, data)
        self.pair, self.full, self.small = self.both.pair, self.both.full, self.both.small
        self.slots = Slots(groups, self.pair.copies, tensors)
        self.padding = Padding(groups)
        self.generator = torch.Generator().manual_seed(0)
        self.corrected = Corrected()

    def run(self) -> Corrected:
        with torch.no_grad():
            for node, copy in self.both.steps(self._work):
                found = layers.find(node, copy, self.slots.find) if self.compensate else None
                if found is not None and found.source in self.pair.changed:
                    self._fit(found)
                norm = batch_norm.find(node, self.slots.find) if self.batch_norm else None
                if norm is not None and norm.source in self.pair.changed:
                    self._estimate(norm)
        self.corrected.samples = self.both.started_with, self.both.samples
        return self.corrected

    def _work(self, node: fx.Node) -> float:
        """About how many operations a step takes, to tell how much is left."""
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor):
            return 0.0
        samples = sum(map(batch_size, self.data.batches)) / max(self.pair.groups.graph.batch, 1)
        size = math.prod(size_of(node)) * samples
        layer = layers.find(node, self.pair.copies[node], self.slots.find)
        if layer is None:
            return MOVED * size
        groups, inputs, outputs = layer.matrix(layer.weight.places).shape
        found = (MOVED + 2 * inputs) * size
        if self.compensate and layer.source in self.pair.changed:
            rows = min(size / (groups * outputs), _rows_wanted(inputs))
            inputs //= channels.taps_of(layer)
            found += groups * inputs * (2 * rows * (inputs + outputs) + inputs**2) + len(CANDIDATES) * inputs * size / 8
        return float(found)

    def _wanted(self, node: fx.Node, batch: int) -> Tensor:
        """What the original computes, at the positions that the smaller model has."""
        value: Tensor = self.pair.at_kept(node, self.full.value(node, batch))
        return value

    def _fit(self, layer: Contraction) -> None:
        absorber = _absorber(layer, self.slots) if not self.data.unscaled else None
        shifted = absorber is not None
        if layer.unknown_bias and not shifted:
            return
        start = layer.matrix(layer.weight.read()).double()
        if channels.taps_of(layer) > 1:
            matrix = self._merged(layer)
            shifts = [self._shift(layer, each) if shifted else None for each in (start, matrix)]
        else:
            moments = self._moments(layer)
            matrix, shift = moments.solve(start, self.ridge, shifted)
            bias = torch.zeros_like(shift)
            if layer.bias is not None:
                bias = layer.bias.read().double().reshape(bias.shape)
            shifts = [moments.shift(start) - bias, shift - bias] if shifted else [None, None]
        none = start.new_zeros(len(start), start.shape[2])
        candidates: dict[str, tuple[Tensor, Tensor]] = {
            name: (found, none if shift is None else shift)
            for name, found, shift in zip(CANDIDATES, (start, start, matrix), (None, *shifts), strict=True)
        }
        if not shifted:
            del candidates["bias"]
        errors = self._judge(layer, candidates)
        if errors["nothing"] < EXACT:
            return
        best = min(errors, key=lambda name: errors[name])
        self.corrected.layers.append(Layer(where(layer.node), start.shape[1], errors["nothing"], errors[best], best))
        if best == "nothing":
            return
        matrix, shift = candidates[best]
        if best == "weights":
            layer.weight.write(layer.unmatrix(matrix))
        if absorber is not None:
            slot, sign = absorber
            slot.write(slot.read().double() + sign * shift.reshape(slot.places.shape))
        self.small.refresh()

    def _merged(self, layer: Contraction) -> Tensor:
        """The matrix with which a very wide convolution reads its channels as what they tell of the original's."""
        moments = Moments()
        for batch in self.both.fit:
            shown = self.padding.shown(layer.source, self.data.batches[batch])
            here, there = self._input(layer, batch), self.full.value(layer.source, batch)
            both = torch.cat([here, there], 1)
            count = sum(map(batch_size, self.data.fit))
            most = _rows_wanted(there.shape[1]) * batch_size(self.data.batches[batch]) / count
            x, y = channels.rows(both, most, self.generator, shown).tensor_split([here.shape[1]], 2)
            moments.add(x, y)
        return merged(self.pair, layer, self.full.value(layer.weight.node), moments, self.ridge)

    def _shift(self, layer: Contraction, matrix: Tensor) -> Tensor:
        """The mean by which the output of a very wide convolution with another matrix is too low: (1, o)."""
        total, count = matrix.new_zeros(1, matrix.shape[2]), 0
        for batch in self.both.fit:
            shown = self.padding.shown(layer.node, self.data.batches[batch])
            have = self._output(layer, matrix, batch)
            apart = channels.rows(self._wanted(layer.node, batch) - have, math.inf, self.generator, shown)
            total += apart.double().sum(1)
            count += apart.shape[1]
        return total / max(count, 1)

    def _output(self, layer: Contraction, matrix: Tensor, batch: int) -> Tensor:
        """What the smaller model's layer computes with another matrix."""
        copies, given = self.pair.copies, self._input(layer, batch)
        instead = {copies[layer.weight.node]: layer.unmatrix(matrix).to(given.dtype), copies[layer.source]: given}
        value: Tensor = self.small.evaluate(copies[layer.node], batch, instead)
        return value

    def _moments(self, layer: Contraction) -> Moments:
        moments = Moments()
        inputs = layer.matrix(layer.weight.places).shape[1]
        share = self._share(layer, inputs)
        for batch in self.both.fit:
            x = self._input(layer, batch)
            wanted = self._wanted(layer.node, batch)
            if self.data.unscaled and layer.bias is not None and layer.along is not None:
                outputs = layer.matrix(layer.weight.places).shape
                wanted = wanted - layer.along(layer.bias.read().reshape(outputs[0], outputs[2])).to(wanted)
            shown = self.padding.shown(layer.node, self.data.batches[batch])
            moments.add(*layer.rows(x, wanted, share, self.generator, shown))
        return moments

    def _shown(self, node: fx.Node, value: Tensor, batch: int) -> Tensor:
        return self.padding.values(node, value, self.data.batches[batch])

    def _input(self, layer: Contraction, batch: int) -> Tensor:
        if self.data.unscaled:
            return self._wanted(layer.source, batch)
        value: Tensor = self.small.value(self.pair.copies[layer.source], batch)
        return value

    def _share(self, layer: Contraction, inputs: int) -> float:
        """The share of the rows to use: rows of one sample are similar, so that not all are needed."""
        groups, _, outputs = layer.matrix(layer.weight.places).shape
        total = sum(
            self.padding.count(layer.node, self._wanted(layer.node, batch), self.data.batches[batch])
            for batch in self.both.fit
        ) // max(groups * outputs, 1)
        return _rows_wanted(inputs) / max(total, 1)

    def _judge(self, layer: Contraction, candidates: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Each candidate's deviation on the data held back, relative to the spread of the original's output."""
        errors = dict.fromkeys(candidates, 0.0)
        wanted = [self._wanted(layer.node, batch) for batch in self.both.held]
        rows = [self._shown(layer.node, w, batch) for batch, w in zip(self.both.held, wanted, strict=True)]
        spread = float(sum((w - w.mean()).double().square().sum() for w in rows))
        for name, (matrix, shift) in candidates.items():
            for batch, want in zip(self.both.held, wanted, strict=True):
                have = self._output(layer, matrix, batch)
                if layer.along is not None:
                    have = have + layer.along(shift).to(have)
                errors[name] += float(self._shown(layer.node, have - want, batch).double().square().sum())
        return {name: (error / spread) ** 0.5 if spread else error for name, error in errors.items()}

    def _estimate(self, norm: BatchNorm) -> None:
        given = arguments(norm.node)
        any_batch, joined = self.both.joined[0], self.both.joined
        mean, variance = (self._wanted(given[name], any_batch).double() for name in ("running_mean", "running_var"))
        source = self.pair.copies[norm.source]
        shown = [self.padding.shown(norm.source, self.data.batches[batch]) for batch in joined]
        wanted = batch_norm.statistics((self._wanted(norm.source, batch) for batch in joined), shown)
        found = batch_norm.statistics((self.small.value(source, batch) for batch in joined), shown)
        mean, variance = batch_norm.match((mean, variance), wanted, found, norm.eps)
        norm.mean.write(mean)
        norm.variance.write(variance)
        self.small.refresh()
        self.corrected.batch_norms += 1


def _rows_wanted(inputs: int) -> float:
    return float(max(2 * inputs, min(ROWS_PER_INPUT * inputs + FEWEST_ROWS, MOST_OPERATIONS / inputs**2)))


def _absorber(layer: Contraction, slots: Slots) -> tuple[Slot, float] | None:
    """The parameter that can absorb a shift of the layer's output, and the sign.

    Its own bias, or, if nothing else reads the output, a batch norm's running mean, or a bias that is added.
    """
    if layer.along is None:
        return None
    if layer.bias is not None:
        return layer.bias, 1.0
    if layer.unknown_bias or len(layer.node.users) != 1:
        return None
    user = next(iter(layer.node.users))
    norm = batch_norm.find(user, slots.find)
    if norm is not None:
        return norm.mean, -1.0
    if operator_name(user) == "add":
        given = arguments(user)
        other = given["other"] if given["self"] is layer.node else given["self"]
        slot = slots.find(other, user)
        if slot is not None and given["alpha"] == 1 and _is_row(slot, layer):
            return slot, 1.0
    return None


def _is_row(slot: Slot, layer: Contraction) -> bool:
    """Whether an added parameter has one number for each of the layer's output units."""
    outputs = layer.matrix(layer.weight.places).shape
    shape = torch.zeros(outputs[0], outputs[2])
    assert layer.along is not None
    along = tuple(layer.along(shape).shape)
    return tuple(slot.places.shape)[-len(along):] == along and slot.places.numel() == shape.numel()
