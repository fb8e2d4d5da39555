"""Linear streams: groups whose units only undergo addition, averaging and movement between writers and readers.

Any invertible matrix can be multiplied into the writers, and its inverse into the readers. With a norm over the units
before a reader, as in a transformer, only rotations that it is invariant to can be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from surgeon.calibration import batch_norm, layers
from surgeon.calibration.batch_norm import BatchNorm
from surgeon.calibration.layers import Contraction
from surgeon.calibration.moments import Moments
from surgeon.calibration.parameter_slots import Slot, Slots
from surgeon.calibration.readers import Reader
from surgeon.groups.coupling import Group, Groups
from surgeon.ir.operators import operator_name
from surgeon.projection.bases import Rotation, nested, weighted
from surgeon.projection.draft import Draft
from surgeon.rules import arguments

#: Linear operators that treat all units the same: sums over other axes, and movement.
_LINEAR = set(
    "dropout clone contiguous alias detach permute transpose view reshape _unsafe_view flatten unflatten unsqueeze "
    "squeeze slice select mean sum avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d neg cat expand "
    "embedding".split()
)
#: Of these, those that preserve a number added to every position of a unit.
_EVEN = _LINEAR - {"sum", "avg_pool1d", "avg_pool2d", "neg", "cat", "embedding"}


@dataclass(frozen=True)
class Norm:
    """A norm over the units of a stream, with its scale and shift."""

    node: fx.Node
    centered: bool
    weight: Slot | None
    bias: Slot | None

    def bare(self, x: Tensor) -> Tensor:
        """The norm of an input (…, C), before scale and shift."""
        x = x.double()
        if self.centered:
            x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@dataclass
class Stream:
    """A linear stream: its readers, with the norm before each, if any, and its writers.

    `tables` are parameters that are added to it directly, such as position embeddings, with the axis of the units.
    """

    group: Group
    readers: list[tuple[Contraction, Norm | None]] = field(default_factory=list)
    writers: list[tuple[Contraction, BatchNorm | None]] = field(default_factory=list)
    tables: list[tuple[Slot, int]] = field(default_factory=list)
    norms: dict[fx.Node, Norm] = field(default_factory=dict)

    @property
    def ranked(self) -> bool:
        """Whether units must be removed from the last to the first: otherwise a norm's mean would mix them."""
        return any(norm.centered for norm in self.norms.values())

    def basis(self, readers: Mapping[fx.Node, Reader], outputs: Mapping[fx.Node, Moments]) -> Rotation:
        """The basis with the directions that matter most first.

        `readers`, and the moments `outputs` of the norms, are those of the unchanged model.
        """
        size = self.group.size
        metrics, covariances = [], []
        for layer, norm in self.readers:
            reader = readers[layer.node]
            matrix = reader.layer.matrix(reader.layer.weight.read()).double()
            weight = _folded(matrix, norm, size).reshape(size, -1, matrix.shape[2])
            metrics.append(torch.einsum("cko,op,dkp->cd", weight, reader.metric[0], weight))
            if norm is not None:
                found = outputs[norm.node].covariances()[0][0]
            else:
                kernel = weight.shape[1] // reader.taps
                found = reader.moments.covariances()[0][0].reshape(size, kernel, size, kernel)
                found = torch.einsum("ckdk->cd", found) / kernel
            covariances.append(found)
        metric, covariance = torch.stack(metrics).sum(0), torch.stack(covariances).mean(0)
        return nested(covariance, metric, self.ranked) if self.norms else weighted(covariance, metric)

    def rotate(self, rotation: Rotation, outputs: Mapping[fx.Node, Moments], draft: Draft) -> None:
        """Rewrite all writers and readers in another basis; scales and shifts of norms are folded into the readers."""
        for layer, norm in self.readers:
            matrix = layer.matrix(draft.read(layer.weight))
            if norm is not None and norm.bias is not None and layer.bias is not None:
                kernel = matrix[0].reshape(self.group.size, -1)
                shift = (norm.bias.read().double() @ kernel).reshape(-1, matrix.shape[2]).sum(0)
                bias = draft.read(layer.bias)
                draft.set(layer.bias, bias + shift.reshape(bias.shape))
            matrix = (rotation.back.t() @ _folded(matrix, norm, self.group.size)).reshape(matrix.shape)
            draft.set(layer.weight, layer.unmatrix(matrix))
        for norm in self.norms.values():
            for slot, neutral in ((norm.weight, 1.0), (norm.bias, 0.0)):
                if slot is not None:
                    draft.set(slot, torch.full(slot.places.shape, neutral))
        for slot, axis in self.tables:
            draft.set(slot, (draft.read(slot).movedim(axis, -1) @ rotation.forth.t()).movedim(-1, axis))
        for layer, after in self.writers:
            _rewrite(layer, after, rotation.forth, outputs, draft)


def _folded(matrix: Tensor, norm: Norm | None, size: int) -> Tensor:
    """A reader's matrix (1, C kernel, o), times the scale of the norm before it, as (C, kernel o)."""
    kernel = matrix[0].reshape(size, -1)
    return kernel if norm is None or norm.weight is None else norm.weight.read().double()[:, None] * kernel


def find(groups: Groups, group: Group, slots: Slots) -> Stream | None:
    """The stream that a group is, if it is linear from all of its writers to all of its readers."""
    search = _Search(groups, slots, Stream(group))
    for node in groups.graph.nodes:
        met = any(groups.holds(each, group.leaf) for each in (node, *node.all_input_nodes))
        if node.op == "call_function" and met and not (search.alone(node) and search.place(node)):
            return None
    stream = search.stream
    members = {groups.graph.canonical[member.tensor] for member in group.members}
    whole = members <= {groups.graph.canonical[name] for name in search.covered}
    return stream if whole and stream.readers and (stream.writers or stream.tables) else None


@dataclass
class _Search:
    """A stream as far as it was found.

    `covered` are the tensors that are a part of it, `through` the values, each with the norm that it comes from.
    """

    groups: Groups
    slots: Slots
    stream: Stream
    covered: set[str] = field(default_factory=set)
    through: dict[fx.Node, Norm | None] = field(default_factory=dict)

    def alone(self, node: fx.Node) -> bool:
        """Whether the group's units are an axis of their own, once, wherever the operator meets them."""
        leaf = self.stream.group.leaf
        if not operator_name(node):
            return False
        for each in (node, *node.all_input_nodes):
            axes = self.groups.axes.get(each, ())
            if isinstance(axes, list):
                return False
            found = [axis for axis in axes if leaf in self.groups.leaves((axis,))]
            if any(self.groups.space.resolve(axis) != leaf for axis in found):
                return False
            if len(found) > 1 and each.op != "get_attr":
                return False
        return True

    def place(self, node: fx.Node) -> bool:
        """Add what an operator is to the stream; whether it leaves the stream linear."""
        layer, name = layers.find(node, node, self.slots.find), operator_name(node)
        if layer is not None:
            return self._layer(layer)
        if name == "batch_norm":
            after = batch_norm.find(node, self.slots.find)
            if after is None or after.weight is None or after.bias is None:
                return False
            self.covered.update(slot.name for slot in (after.mean, after.variance, after.weight, after.bias))
            self.through[node] = None
            return any(other is not None and other.node is node for _, other in self.stream.writers)
        if name in ("layer_norm", "rms_norm"):
            return self._norm(node)
        if not self._has(node) or (name not in _LINEAR and name != "add"):
            return False
        operands = [each for each in node.all_input_nodes if self._has(each)]
        if not all(self._table(each, node) for each in operands if each.op == "get_attr"):
            return False
        norms = {self.through.get(each) for each in operands if each.op != "get_attr"}
        norm = norms.pop() if norms else None
        if norms or (norm is not None and (name not in _EVEN or len(operands) > 1)):
            return False
        self.through[node] = norm
        if name == "add":
            given = arguments(node)
            numbers = [given["self"], given["other"]]
            return given["alpha"] == 1 and all(isinstance(each, fx.Node) and each in operands for each in numbers)
        return True

    def _has(self, node: fx.Node) -> bool:
        return self.groups.holds(node, self.stream.group.leaf)

    def _axis(self, node: fx.Node) -> int:
        """The first axis of a value that the group's units are."""
        (axes,) = self.groups.axes_of(node)
        return next(i for i, each in enumerate(axes) if self.groups.space.resolve(each) == self.stream.group.leaf)

    def _layer(self, layer: Contraction) -> bool:
        count, inputs, _ = layer.matrix(layer.weight.places).shape
        if count != 1 or layer.along is None or layer.unknown_bias:
            return False
        reads, writes = self._has(layer.source), self._has(layer.node)
        if reads:
            norm = self.through.get(layer.source)
            wide = inputs > self.stream.group.size
            if norm is not None and norm.bias is not None and (layer.bias is None or wide):
                return False
            self.stream.readers.append((layer, norm))
        if writes:
            users = list(layer.node.users)
            after = batch_norm.find(users[0], self.slots.find) if len(users) == 1 else None
            self.stream.writers.append((layer, after))
            self.through[layer.node] = None
            if layer.bias is not None:
                self.covered.add(layer.bias.name)
        self.covered.add(layer.weight.name)
        return reads or writes

    def _norm(self, node: fx.Node) -> bool:
        given = arguments(node)
        if len(given["normalized_shape"]) != 1 or self._axis(given["input"]) != node.meta["val"].dim() - 1:
            return False
        found = {name: self.slots.find(given.get(name), node) for name in ("weight", "bias")}
        if any(slot is None and given.get(name) is not None for name, slot in found.items()):
            return False
        norm = Norm(node, "bias" in given, found["weight"], found["bias"])
        self.covered.update(slot.name for slot in found.values() if slot is not None)
        self.stream.norms[node] = self.through[node] = norm
        return self.through.get(given["input"]) is None

    def _table(self, operand: fx.Node, user: fx.Node) -> bool:
        slot = self.slots.find(operand, user)
        if slot is None:
            return False
        self.stream.tables.append((slot, self._axis(operand)))
        self.covered.add(slot.name)
        return True


def _rewrite(
    layer: Contraction, norm: BatchNorm | None, forth: Tensor, outputs: Mapping[fx.Node, Moments], draft: Draft
) -> None:
    """Rewrite a writer to output the new basis; a batch norm after it is folded into it."""
    matrix = layer.matrix(draft.read(layer.weight))
    bias = draft.read(layer.bias).flatten() if layer.bias is not None else torch.zeros(len(forth)).to(forth)
    if norm is not None:
        assert norm.weight is not None and norm.bias is not None
        factor = norm.weight.read().double() / (norm.variance.read().double() + norm.eps).sqrt()
        bias = norm.bias.read().double() + factor * (bias - norm.mean.read().double())
        matrix = matrix * factor
    matrix, bias = matrix @ forth.t(), forth @ bias
    draft.set(layer.weight, layer.unmatrix(matrix))
    if norm is None or norm.weight is None or norm.bias is None:
        if layer.bias is not None:
            draft.set(layer.bias, bias)
        return
    # The statistics are those of the rotated channels, so that the norm can be trained further.
    center = forth @ outputs[norm.node].means[0][0]
    spread = (forth @ outputs[norm.node].covariances()[0][0] @ forth.t()).diagonal().clamp(min=0)
    spread = spread.to(norm.variance.tensor.dtype).double()  # as it will be stored: the scale must match that
    draft.set(norm.variance, spread)
    draft.set(norm.weight, (spread + norm.eps).sqrt())
    draft.set(norm.mean, center - bias)
    draft.set(norm.bias, center)
    if layer.bias is not None:
        draft.set(layer.bias, torch.zeros_like(bias))
