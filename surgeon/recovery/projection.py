"""Rotation of linear streams: the directions that matter least, not whole channels, are what is cut.

A stream is linear where all that happens to its units between the layers that write them and the layers that read them
is addition, averaging and movement. Any invertible matrix may then be multiplied into the writers and its inverse into
the readers: the model computes the same. Found from the graph alone. As in Ashkboos et al., "SliceGPT", ICLR 2024, with
directions weighted by what the output makes of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.coupling import Group, Groups
from surgeon.recovery import batch_norm as norms
from surgeon.recovery import contraction
from surgeon.recovery.batch_norm import BatchNorm
from surgeon.recovery.contraction import Contraction
from surgeon.recovery.data import Calibration, calibrate
from surgeon.recovery.moments import Moments
from surgeon.recovery.network import Network
from surgeon.recovery.sensitivity import Reader, Sensitivity, measure
from surgeon.recovery.slots import Slots
from surgeon.rules import arguments
from surgeon.verify.interpreter import last_uses

#: Operators that treat every unit alike and are linear: sums over other axes, and movement.
_LINEAR = set(
    "dropout clone contiguous alias detach permute transpose view reshape _unsafe_view flatten unsqueeze squeeze slice "
    "select mean sum avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d neg".split()
)
#: How far the rotated model's outputs may be from the original's, relative to their size.
TOLERANCE = 1e-3
_DAMPING = 1e-3


@dataclass
class Stream:
    """A group whose units only pass through linear operators between its writers and its readers."""

    group: Group
    readers: list[Contraction] = field(default_factory=list)
    writers: list[tuple[Contraction, BatchNorm | None]] = field(default_factory=list)


def project(model: nn.Module, groups: Groups, data: Any, *, samples: int = 256) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of the model that computes the same, its linear streams in the basis in which least is lost by a cut.

    Args:
        model: the model that `groups` are of; it is left as it is.
        groups: its coupled units.
        data: unlabeled inputs, as for `recover`, or a Calibration.
        samples: how many of them to use at most.

    Returns:
        The copy, and the names of the groups that were rotated; none if the copy would not compute the same.

    >>> from surgeon.coupling import couple
    >>> from surgeon.trace import trace
    >>> net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    >>> x = torch.randn(64, 8)
    >>> rotated, names = project(net, couple(trace(net, x)), x)
    >>> names, torch.allclose(rotated(x), net(x), atol=1e-4)
    (('0',), True)
    """
    calibration = calibrate(data, groups.graph, model, samples)
    rotated = copy.deepcopy(model)
    tensors = {**dict(rotated.named_parameters(remove_duplicate=False)),
               **dict(rotated.named_buffers(remove_duplicate=False))}
    slots = Slots(groups, {node: node for node in groups.graph.nodes}, tensors)
    streams = [stream for group in groups if (stream := find(groups, group, slots)) is not None]
    if not streams:
        return rotated, ()
    sensitivity = measure(groups, calibration.batches)
    outputs = _normalised(groups, streams, calibration)
    for stream in streams:
        _rotate(stream, sensitivity, outputs)
    if _deviation(groups, tensors, calibration) > TOLERANCE:
        return copy.deepcopy(model), ()
    return rotated, tuple(stream.group.name for stream in streams)


def find(groups: Groups, group: Group, slots: Slots) -> Stream | None:
    """The stream that a group is, if it is linear from all of its writers to all of its readers."""
    stream = Stream(group)
    covered: set[str] = set()
    for node in groups.graph.nodes:
        if node.op != "call_function" or not _touches(groups, node, group):
            continue
        if not _alone(groups, node, group):
            return None
        if not _place(groups, stream, node, slots, covered):
            return None
    members = {groups.graph.canonical[member.tensor] for member in group.members}
    whole = members <= {groups.graph.canonical[name] for name in covered}
    return stream if whole and stream.readers and stream.writers else None


def _place(groups: Groups, stream: Stream, node: fx.Node, slots: Slots, covered: set[str]) -> bool:
    """Add what an operator is to the stream; whether it leaves the stream linear."""
    group = stream.group
    layer = contraction.find(node, node, slots.find)
    if layer is not None:
        if layer.matrix(layer.weight.places).shape[0] != 1 or layer.along is None or layer.unknown_bias:
            return False
        reads = _in_axes(groups, layer.source, group)
        writes = _in_axes(groups, node, group)
        if reads:
            stream.readers.append(layer)
        if writes:
            users = list(node.users)
            norm = norms.find(users[0], slots.find) if len(users) == 1 else None
            stream.writers.append((layer, norm))
            if layer.bias is not None:
                covered.add(layer.bias.name)
        covered.add(layer.weight.name)
        return reads or writes
    norm = norms.find(node, slots.find)
    if norm is not None:
        written = any(other is not None and other.node is node for _, other in stream.writers)
        if norm.weight is None or norm.bias is None:
            return False
        covered.update(slot.name for slot in (norm.mean, norm.variance, norm.weight, norm.bias))
        return written
    name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    if name == "add":
        return all(isinstance(each, fx.Node) and _in_axes(groups, each, group) and each.op != "get_attr"
                   for each in node.args[:2]) and arguments(node)["alpha"] == 1
    return name in _LINEAR and _in_axes(groups, node, group)


def _touches(groups: Groups, node: fx.Node, group: Group) -> bool:
    return any(_in_axes(groups, each, group) for each in (node, *node.all_input_nodes))


def _in_axes(groups: Groups, node: fx.Node, group: Group) -> bool:
    axes = groups.axes.get(node, ())
    every = [axis for each in (axes if isinstance(axes, list) else [axes]) for axis in each]
    return any(leaf.id == group.leaf.id for axis in every for leaf in groups.space.leaves(axis))


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


def _normalised(groups: Groups, streams: list[Stream], data: Calibration) -> dict[fx.Node, Moments]:
    """The moments of what each batch norm of a stream puts out."""
    found = {norm.node: Moments() for stream in streams for _, norm in stream.writers if norm is not None}
    graph = groups.graph
    network = _network(groups, {}, data)
    drop = last_uses(graph)
    with torch.no_grad():
        for node in graph.nodes:
            if node.op in ("get_attr", "output"):
                continue
            for batch in range(len(data.batches)):
                value = network.compute(node, batch)
                network.keep(node, batch, value)
                if node in found:
                    rows = value.transpose(0, 1).flatten(1).t()[None]
                    found[node].add(rows, rows[:, :, :0])
            network.drop(drop.get(node, ()))
    return found


def _network(groups: Groups, tensors: dict[str, Tensor], data: Calibration) -> Network:
    graph = groups.graph

    def tensor(node: fx.Node) -> Tensor | None:
        name = graph.tensors.get(node.name)
        return tensors.get(name, graph.tensor(name)) if name is not None else None

    return Network({node: node for node in graph.nodes}, tensor, data.batches)


def _rotate(stream: Stream, sensitivity: Sensitivity, outputs: dict[fx.Node, Moments]) -> None:
    forth, back = _basis(stream, {reader.layer.node: reader for reader in sensitivity.readers})
    for layer in stream.readers:
        matrix = layer.matrix(layer.weight.read()).double()
        split = matrix.reshape(len(back), -1, matrix.shape[2])
        layer.weight.write(layer.unmatrix(torch.einsum("cd,cko->dko", back, split).reshape(matrix.shape)))
    for layer, norm in stream.writers:
        matrix = layer.matrix(layer.weight.read()).double()
        bias = layer.bias.read().double().flatten() if layer.bias is not None else torch.zeros(len(forth)).to(forth)
        if norm is not None:
            assert norm.weight is not None and norm.bias is not None
            factor = norm.weight.read().double() / (norm.variance.read().double() + norm.eps).sqrt()
            bias = norm.bias.read().double() + factor * (bias - norm.mean.read().double())
            matrix = matrix * factor
        matrix, bias = matrix @ forth.t(), forth @ bias
        layer.weight.write(layer.unmatrix(matrix))
        if norm is None or norm.weight is None or norm.bias is None:
            if layer.bias is not None:
                layer.bias.write(bias)
            continue
        # The statistics are those of the rotated channels, so that the norm may be trained on.
        centre = forth @ outputs[norm.node].means[0][0]
        spread = (forth @ outputs[norm.node].covariances()[0][0] @ forth.t()).diagonal().clamp(min=0)
        norm.variance.write(spread)
        norm.weight.write((norm.variance.read().double() + norm.eps).sqrt())
        norm.mean.write(centre - bias)
        norm.bias.write(centre)
        if layer.bias is not None:
            layer.bias.write(torch.zeros_like(bias))


def _basis(stream: Stream, readers: dict[fx.Node, Reader]) -> tuple[Tensor, Tensor]:
    """The matrix (C, C) into the new basis, and its inverse, the directions that matter most first.

    In the new basis the stream has variance 1 in all directions, and what the output makes of them is diagonal.
    """
    size = stream.group.size
    metric: Tensor | float = 0.0
    covariance: Tensor | float = 0.0
    for layer in stream.readers:
        reader = readers[layer.node]
        weight = layer.matrix(layer.weight.read()).double()[0].reshape(size, -1, reader.gradients.shape[1])
        gradients = reader.gradients[0] * (reader.positions / max(reader.count, 1))
        metric = metric + torch.einsum("cko,op,dkp->cd", weight, gradients, weight)
        found = reader.moments.covariances()[0][0].reshape(size, weight.shape[1], size, weight.shape[1])
        covariance = covariance + torch.einsum("ckdk->cd", found) / weight.shape[1]
    assert isinstance(metric, Tensor) and isinstance(covariance, Tensor)
    covariance = covariance / len(stream.readers)
    values, vectors = torch.linalg.eigh(covariance)
    root = (values.clamp(min=0) + _DAMPING * values.clamp(min=0).mean() + 1e-12).sqrt()
    half, inverse = vectors * root @ vectors.t(), vectors / root @ vectors.t()
    _, directions = torch.linalg.eigh(half @ metric @ half)
    directions = directions.flip(1)
    return directions.t() @ inverse, half @ directions


def _deviation(groups: Groups, tensors: dict[str, Tensor], data: Calibration) -> float:
    """How far the outputs with these tensors are from the model's own, relative to their size."""
    pair = [_network(groups, own, data.judge) for own in ({}, tensors)]
    drop = last_uses(groups.graph)
    apart = size = 0.0
    with torch.no_grad():
        for node in groups.graph.nodes:
            if node.op == "get_attr":
                continue
            for batch in range(len(data.held_back)):
                if node.op == "output":
                    for a, b in zip(*(network.outputs(node, batch) for network in pair), strict=True):
                        apart, size = apart + float((a - b).square().sum()), size + float(a.square().sum())
                    continue
                for network in pair:
                    network.keep(node, batch, network.compute(node, batch))
            for network in pair:
                network.drop(drop.get(node, ()))
    return (apart / size) ** 0.5 if size else apart
