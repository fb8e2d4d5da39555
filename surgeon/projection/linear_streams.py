"""Linear streams: groups whose units meet nothing but addition, averaging and movement between writers and readers.

Any invertible matrix may be multiplied into the writers and its inverse into the readers. A norm over the units before
a reader, as in a transformer, leaves the rotations among these that it does not notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from surgeon.calibration import batch_norm, layers
from surgeon.calibration.batch_norm import BatchNorm
from surgeon.calibration.fisher import Reader
from surgeon.calibration.layers import Contraction
from surgeon.calibration.moments import Moments
from surgeon.calibration.parameter_slots import Slot, Slots
from surgeon.groups.coupling import Group, Groups
from surgeon.projection.bases import Rotation, nested, weighted
from surgeon.projection.draft import Draft
from surgeon.rules import arguments

#: Operators that treat every unit alike and are linear: sums over other axes, and movement.
_LINEAR = set(
    "dropout clone contiguous alias detach permute transpose view reshape _unsafe_view flatten unflatten unsqueeze "
    "squeeze slice select mean sum avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d neg cat expand "
    "embedding".split()
)
#: Of these, what leaves a number that is added to every position of a unit the same.
_EVEN = _LINEAR - {"sum", "avg_pool1d", "avg_pool2d", "neg", "cat", "embedding"}


@dataclass(frozen=True)
class Norm:
    """A norm over the units of a stream, and its factors and shifts."""

    node: fx.Node
    centered: bool
    weight: Slot | None
    bias: Slot | None

    def bare(self, x: Tensor) -> Tensor:
        """What the norm makes of its input (…, C) before factors and shifts."""
        x = x.double()
        if self.centered:
            x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@dataclass
class Stream:
    """A linear stream: what reads it, each through a norm or not, and what writes it.

    `tables` are parameters that are a part of it as they are, such as positions, with the axis of the units.
    """

    group: Group
    readers: list[tuple[Contraction, Norm | None]] = field(default_factory=list)
    writers: list[tuple[Contraction, BatchNorm | None]] = field(default_factory=list)
    tables: list[tuple[Slot, int]] = field(default_factory=list)
    norms: dict[fx.Node, Norm] = field(default_factory=dict)

    @property
    def ranked(self) -> bool:
        """Whether units must go from the last to the first: otherwise a norm's mean would mix them."""
        return any(norm.centered for norm in self.norms.values())

    def basis(self, readers: Mapping[fx.Node, Reader], outputs: Mapping[fx.Node, Moments]) -> Rotation:
        """The basis in which the directions that matter most come first; nothing is changed.

        `readers` and `outputs`, the moments of what norms put out, are those of the model as it is.
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
                kernel = weight.shape[1]
                found = reader.moments.covariances()[0][0].reshape(size, kernel, size, kernel)
                found = torch.einsum("ckdk->cd", found) / kernel
            covariances.append(found)
        metric, covariance = torch.stack(metrics).sum(0), torch.stack(covariances).mean(0)
        return nested(covariance, metric, self.ranked) if self.norms else weighted(covariance, metric)

    def rotate(self, rotation: Rotation, outputs: Mapping[fx.Node, Moments], draft: Draft) -> None:
        """Bring all that writes and reads the stream into another basis; norms hand factors and shifts to readers."""
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
    """A reader's matrix (1, C kernel, o), times the factors of the norm before it, as (C, kernel o)."""
    kernel = matrix[0].reshape(size, -1)
    return kernel if norm is None or norm.weight is None else norm.weight.read().double()[:, None] * kernel


def find(groups: Groups, group: Group, slots: Slots) -> Stream | None:
    """The stream that a group is, if it is linear from all of its writers to all of its readers."""
    stream = Stream(group)
    covered: set[str] = set()
    through: dict[fx.Node, Norm | None] = {}
    for node in groups.graph.nodes:
        if node.op != "call_function" or not _touches(groups, node, group):
            continue
        if not _alone(groups, node, group) or not _place(groups, stream, node, slots, covered, through):
            return None
    members = {groups.graph.canonical[member.tensor] for member in group.members}
    whole = members <= {groups.graph.canonical[name] for name in covered}
    return stream if whole and stream.readers and (stream.writers or stream.tables) else None


def _place(
    groups: Groups, stream: Stream, node: fx.Node, slots: Slots, covered: set[str], through: dict[fx.Node, Norm | None]
) -> bool:
    """Add what an operator is to the stream; whether it leaves the stream linear."""
    layer = layers.find(node, node, slots.find)
    if layer is not None:
        return _place_layer(groups, stream, layer, slots, covered, through)
    name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    if name == "batch_norm":
        after = batch_norm.find(node, slots.find)
        if after is None or after.weight is None or after.bias is None:
            return False
        covered.update(slot.name for slot in (after.mean, after.variance, after.weight, after.bias))
        through[node] = None
        return any(other is not None and other.node is node for _, other in stream.writers)
    if name in ("layer_norm", "rms_norm"):
        return _place_norm(groups, stream, node, slots, covered, through)
    if not _in_axes(groups, node, stream.group) or (name not in _LINEAR and name != "add"):
        return False
    operands = [each for each in node.all_input_nodes if _in_axes(groups, each, stream.group)]
    parts = [each for each in operands if each.op != "get_attr"]
    for operand in operands:
        if operand.op == "get_attr" and not _place_table(groups, stream, operand, node, slots, covered):
            return False
    norms = {through.get(each) for each in parts}
    norm = norms.pop() if norms else None
    if norms or (norm is not None and (name not in _EVEN or len(operands) > 1)):
        return False
    through[node] = norm
    if name == "add":
        given = arguments(node)
        numbers = [given["self"], given["other"]]
        return given["alpha"] == 1 and all(isinstance(each, fx.Node) and each in operands for each in numbers)
    return True


def _place_layer(
    groups: Groups, stream: Stream, layer: Contraction, slots: Slots, covered: set[str],
    through: dict[fx.Node, Norm | None],
) -> bool:
    if layer.matrix(layer.weight.places).shape[0] != 1 or layer.along is None or layer.unknown_bias:
        return False
    reads, writes = (_in_axes(groups, each, stream.group) for each in (layer.source, layer.node))
    if reads:
        norm = through.get(layer.source)
        wide = layer.matrix(layer.weight.places).shape[1] > stream.group.size
        if norm is not None and norm.bias is not None and (layer.bias is None or wide):
            return False
        stream.readers.append((layer, norm))
    if writes:
        users = list(layer.node.users)
        stream.writers.append((layer, batch_norm.find(users[0], slots.find) if len(users) == 1 else None))
        through[layer.node] = None
        if layer.bias is not None:
            covered.add(layer.bias.name)
    covered.add(layer.weight.name)
    return reads or writes


def _place_norm(
    groups: Groups, stream: Stream, node: fx.Node, slots: Slots, covered: set[str],
    through: dict[fx.Node, Norm | None],
) -> bool:
    given = arguments(node)
    if len(given["normalized_shape"]) != 1 or _axis(groups, given["input"], stream.group) != node.meta["val"].dim() - 1:
        return False
    found: dict[str, Slot | None] = {}
    for name in ("weight", "bias"):
        found[name] = slots.find(given.get(name), node)
        if found[name] is None and given.get(name) is not None:
            return False
    norm = Norm(node, "bias" in given, found["weight"], found["bias"])
    covered.update(slot.name for slot in found.values() if slot is not None)
    stream.norms[node] = through[node] = norm
    return through.get(given["input"]) is None


def _place_table(
    groups: Groups, stream: Stream, operand: fx.Node, user: fx.Node, slots: Slots, covered: set[str]
) -> bool:
    slot = slots.find(operand, user)
    if slot is None:
        return False
    stream.tables.append((slot, _axis(groups, operand, stream.group)))
    covered.add(slot.name)
    return True


def _rewrite(
    layer: Contraction, norm: BatchNorm | None, forth: Tensor, outputs: Mapping[fx.Node, Moments], draft: Draft
) -> None:
    """Let a writer put out its units in the new basis; a batch norm behind it is carried over into it."""
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
    # The statistics are those of the rotated channels, so that the norm may be trained on.
    center = forth @ outputs[norm.node].means[0][0]
    spread = (forth @ outputs[norm.node].covariances()[0][0] @ forth.t()).diagonal().clamp(min=0)
    spread = spread.to(norm.variance.tensor.dtype).double()  # as it will be stored: the factor is made for that
    draft.set(norm.variance, spread)
    draft.set(norm.weight, (spread + norm.eps).sqrt())
    draft.set(norm.mean, center - bias)
    draft.set(norm.bias, center)
    if layer.bias is not None:
        draft.set(layer.bias, torch.zeros_like(bias))


def _touches(groups: Groups, node: fx.Node, group: Group) -> bool:
    return any(_in_axes(groups, each, group) for each in (node, *node.all_input_nodes))


def _in_axes(groups: Groups, node: fx.Node, group: Group) -> bool:
    axes = groups.axes.get(node, ())
    every = [axis for each in (axes if isinstance(axes, list) else [axes]) for axis in each]
    return any(leaf.id == group.leaf.id for axis in every for leaf in groups.space.leaves(axis))


def _axis(groups: Groups, node: fx.Node, group: Group) -> int:
    """The first axis of a value that the group's units are."""
    axes = groups.axes[node]
    assert isinstance(axes, tuple)
    return next(i for i, each in enumerate(axes) if groups.space.resolve(each) == group.leaf)


def _alone(groups: Groups, node: fx.Node, group: Group) -> bool:
    """Whether the group's units are an axis of their own, once, wherever the operator meets them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    for each in (node, *node.all_input_nodes):
        axes = groups.axes.get(each, ())
        if isinstance(axes, list):
            return False
        found = [axis for axis in axes if any(x.id == group.leaf.id for x in groups.space.leaves(axis))]
        if any(groups.space.resolve(axis) != group.leaf for axis in found):
            return False
        if len(found) > 1 and each.op != "get_attr":
            return False
    return True
