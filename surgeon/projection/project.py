"""Projection: a model is rewritten in the basis in which a cut does least damage, and computes the same function.

Then the least important directions are removed, not whole channels. As in Ashkboos et al., "SliceGPT", ICLR 2024, with
directions weighted by their effect on the output. What can be rotated is found from the graph.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.calibration.data import Calibration
from surgeon.calibration.fisher import measure, operations_on, spread
from surgeon.calibration.layers import Contraction
from surgeon.calibration.moments import ENOUGH, Moments
from surgeon.calibration.other_sizes import analyze_again, calibrated
from surgeon.calibration.padding import Padding
from surgeon.calibration.parameter_slots import Slots
from surgeon.calibration.restated import judged_on
from surgeon.frontend.copies import duplicate
from surgeon.frontend.ignore import Ignored, ignoring
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import public
from surgeon.frontend.trace import Graph, Inputs
from surgeon.frontend.wrappers import within_its_wrapper
from surgeon.groups.analyze import analyze
from surgeon.groups.coupling import Group, Groups
from surgeon.groups.interpreter import Interpreter, floating
from surgeon.ir.fingerprint import named_tensors
from surgeon.plans.basis import Basis, basis_of, mark
from surgeon.projection import attention_heads, channel_order, linear_streams
from surgeon.projection.attention_heads import Match
from surgeon.projection.draft import Draft
from surgeon.projection.linear_streams import Stream
from surgeon.rules.base import size_of
from surgeon.support.memory import using_memory
from surgeon.support.progress import stage

#: The largest deviation of the rotated model's outputs from the original's, relative to their norm.
TOLERANCE = 1e-3
#: Of the operations that judging units may take, what finding a basis may: it depends less on single inputs.
SHARE = 0.2
#: Samples that gradients are taken of for it, whatever operations that takes.
FEWEST = 32


@within_its_wrapper()
@public()
@undisturbed()
def project(
    model: nn.Module, data: Any, *, samples: int = 256, memory: float | None = None, example_inputs: Any = None
) -> nn.Module:
    """A copy of the model that computes the same, in the basis in which a cut does least damage.

    Linear streams are rotated from their writers to their readers, and values and keys inside of each attention head;
    inside of each group of a grouped convolution, channels are sorted by importance.
    `shrink` does this itself if it has data. A plan that is made for the copy refers to the copy's units, and
    `Plan.apply` and `verify` accept it for the copy only.

    Args:
        model: any module that `torch.export` can trace; it is left as it is.
        data: unlabeled inputs, as for `shrink`.
        samples: how many of them to use at most.
        memory: the share of the machine's memory that may be taken beside the models; by default an eighth, and at
            most 2 GiB.
        example_inputs: as for `shrink`.

    Returns:
        The copy, with its `Basis`; the model itself if nothing can be rotated, or if the copy would not compute the
        same.

    Raises:
        InvalidArgument, InvalidInputs: bad input.
        TraceError: `torch.export` can't trace the model.

    >>> from surgeon.plans.basis import basis_of
    >>> net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    >>> x = torch.randn(64, 8)
    >>> rotated = project(net, x)
    >>> basis_of(rotated).groups, torch.allclose(rotated(x), net(x), atol=1e-4)
    (('0',), True)
    """
    with using_memory(memory):
        return project_groups(model, *calibrated(data, analyze(model, example_inputs), model, samples))


def project_groups(model: nn.Module, groups: Groups, calibration: Calibration) -> nn.Module:
    """As `project`, for a model that is already traced and coupled.

    All decisions are based on the unchanged model.
    """
    rotated = duplicate(model)
    tensors = dict(named_tensors(rotated))
    slots = Slots(groups, {node: node for node in groups.graph.nodes}, tensors)
    free = [group for group in groups if not _read_beside(groups, group)]
    linear = [stream for group in free if (stream := linear_streams.find(groups, group, slots)) is not None]
    values, matches = attention_heads.find(groups, slots, {group.leaf.id for group in free})
    turned = {value.leaf for value in values} | {match.leaf for match in matches}
    turned |= {stream.group.leaf.id for stream in linear}
    inner = [found for group in free if group.leaf.id not in turned and (found := channel_order.find(groups, group))]
    if not (turned or inner):
        return model
    judged = judged_on(groups, calibration)
    sensitivity = measure(judged, calibration, share=SHARE, fewest=FEWEST)
    readers = {reader.layer.node: reader for reader in sensitivity.readers}
    seen = _Seen(judged, linear, matches, calibration.batches, SHARE * operations_on(calibration) / sensitivity.work)
    draft = Draft()
    for value in values:
        value.rotate(value.basis(readers), draft)
    for match in matches:
        match.rotate(match.basis(seen.queries, seen.keys), draft)
    for stream in linear:
        stream.rotate(stream.basis(readers, seen.norms), seen.norms, draft)
    for each in inner:
        if (best := each.order(groups, sensitivity.readers)) is not None:
            each.sort(best, groups, tensors, draft)
            turned.add(each.group.leaf.id)
    if not turned:
        return model
    draft.write()
    deviation = _deviation(groups.graph, tensors, calibration.held_back, Padding(groups))
    beside = groups.graph.train_only
    if not deviation <= TOLERANCE:
        return model
    if beside is not None and not _deviation(beside, tensors, [beside.inputs]) <= TOLERANCE:
        return model
    mark(rotated, Basis(
        _digest(rotated), tuple(group.name for group in groups if group.leaf.id in turned),
        tuple(stream.group.name for stream in linear if stream.ranked), deviation, _changed(model, tensors),
    ))
    return rotated


def _changed(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(name for name, value in named_tensors(model) if not torch.equal(value, tensors[name]))


def _read_beside(groups: Groups, group: Group) -> bool:
    """Whether a part of the model that only runs in train mode has a tensor of the group: these are not analyzed."""
    return any(groups.graph.canonical[member.tensor] not in groups.graph.read for member in group.members)


def _digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().double().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


class _Seen:
    """Moments of the outputs of norms, before their scale, and of the writers of queries and keys.

    They are of all batches, or of some with `most` samples in all, or of more where these have too few rows.
    """

    def __init__(
        self, groups: Groups, linear: Iterable[Stream], matches: Iterable[Match], batches: Sequence[Inputs],
        most: float,
    ) -> None:
        self.norms: dict[fx.Node, Moments] = {}
        self.queries = {match.writer.node: Moments() for match in matches}
        self.keys = {match.reader.node: Moments() for match in matches}
        self.layers = {layer.node: layer for match in matches for layer in (match.writer, match.reader)}
        self.bare = {node: norm for stream in linear for node, norm in stream.norms.items()}
        for stream in linear:
            self.norms |= {norm.node: Moments() for _, norm in stream.writers if norm is not None}
        self.norms |= {node: Moments() for node in self.bare}
        if not (self.norms or self.layers):
            return
        padding = Padding(groups)
        rows = max(self._samples(node) for node in (*self.norms, *self.layers)) * groups.graph.batch
        with torch.no_grad():
            for place in spread(batches, most, max(math.ceil(rows), FEWEST)):
                batch = batches[place]
                run = Interpreter(groups.graph, batch)
                for node in run:
                    value = run.compute(node)
                    if node in self.norms or node in self.layers:
                        self._look(node, run, value, padding.shown(node, batch))

    def _samples(self, node: fx.Node) -> float:
        """How many times the example inputs' rows are enough."""
        shape = size_of(node)
        axis = -1 if node in self.bare else 1
        if node in self.layers:
            axis = _unit_axis(self.layers[node], len(shape))
        return ENOUGH * shape[axis] ** 2 / math.prod(shape)

    def _look(self, node: fx.Node, run: Interpreter, value: Tensor, shown: Tensor | None) -> None:
        if node in self.bare:
            _add(self.norms[node], self.bare[node].bare(run.value(node.all_input_nodes[0])), -1, shown)
        elif node in self.norms:
            _add(self.norms[node], value, 1, shown)
        if node in self.layers:
            axis = _unit_axis(self.layers[node], value.dim())
            if node in self.queries:
                _add(self.queries[node], value, axis, shown)
            if node in self.keys:
                # What all keys of a sample have in common adds the same to all scores, to which softmax is invariant.
                others = [dim for dim in range(1, value.dim()) if dim != axis]
                _add(self.keys[node], value - _mean(value, others, shown) if others else value, axis, shown)


def _add(moments: Moments, value: Tensor, axis: int, shown: Tensor | None) -> None:
    rows = value.movedim(axis, -1).reshape(1, -1, value.shape[axis]).double()
    if shown is not None:
        rows = rows[:, shown.expand(value.shape).movedim(axis, -1).reshape(rows.shape)[0, :, 0]]
    moments.add(rows, rows[:, :, :0])


def _mean(value: Tensor, axes: list[int], shown: Tensor | None) -> Tensor:
    """The mean along some axes, which are kept, of what is shown."""
    if shown is None:
        return value.mean(axes, keepdim=True)
    own = shown.expand(value.shape)
    return torch.where(own, value, 0.0).sum(axes, keepdim=True) / own.sum(axes, keepdim=True).clamp(min=1)


def _unit_axis(layer: Contraction, dims: int) -> int:
    """The axis of a layer's output, which has `dims`, that holds its units."""
    assert layer.along is not None
    _, _, count = layer.matrix(layer.weight.places).shape
    shape = layer.along(torch.zeros(1, count)).shape
    return dims - len(shape) + max(range(len(shape)), key=lambda dim: shape[dim])


def _deviation(
    graph: Graph, tensors: Mapping[str, Tensor], batches: Sequence[Inputs], padding: Padding | None = None
) -> float:
    """The deviation of the outputs with these tensors from the model's own, relative to their norm, padding aside."""
    def instead(name: str, value: Tensor) -> Tensor:
        return tensors.get(name, tensors.get(graph.canonical[name], value))

    apart = size = 0.0
    with torch.no_grad():
        for batch in batches:
            own, found = (
                floating(_given(graph, Interpreter(graph, batch, parameter=each).run())) for each in (None, instead)
            )
            if padding is not None:
                own, found = (padding.in_a_row(each, batch) for each in (own, found))
            for a, b in zip(own, found, strict=True):
                apart, size = apart + float((a - b).square().sum()), size + float(a.square().sum())
    return (apart / size) ** 0.5 if size else apart


def _given(graph: Graph, outputs: Any) -> list[Any]:
    """The outputs that the model gives."""
    leaves = pytree.tree_leaves(outputs)
    return leaves[: len(leaves) - graph.inner]


def rotated(
    model: nn.Module, groups: Groups, data: Calibration, ignore: Ignored | Iterable[Ignored]
) -> tuple[nn.Module, Groups]:
    """The model in the basis in which a cut does least damage, and its groups; both as they are if it has a basis."""
    if basis_of(model) is not None:
        return model, groups
    with stage("project"):
        turned = project_groups(model, groups, data)
    if turned is model:
        return model, groups
    return turned, analyze_again(turned, groups, ignoring(model, ignore))
