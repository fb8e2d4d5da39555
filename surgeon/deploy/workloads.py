"""What a latency is of: a model's graph at the shapes of its inputs that are asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.cost.cost import Cost
from surgeon.deploy.inputs import Call, read_call
from surgeon.errors import InvalidArgument
from surgeon.frontend.free_sizes import resized
from surgeon.frontend.trace import Inputs, batch_size, batched
from surgeon.groups.analyze import analyze_inputs
from surgeon.groups.coupling import Groups
from surgeon.ir.fingerprint import fingerprint
from surgeon.support.shapes import ONLY, Shaped


@dataclass(frozen=True)
class Workload:
    """Runs of the graph of `groups` on `batch` samples, the share `weight` of all runs.

    A graph whose batch is not free has one batch, which it was traced with.
    """

    groups: Groups
    batch: int = 1
    weight: float = 1.0

    @property
    def inputs(self) -> Inputs:
        """Inputs of these shapes."""
        graph = self.groups.graph
        return batched(graph.inputs, self.batch) if graph.dynamic else graph.inputs

    def shapes(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs, by the names that they have in an exported file."""
        call = _call(model, self.inputs)
        return call.shapes(call.tensors)

    def feeds(self, model: nn.Module) -> dict[str, np.ndarray]:
        """Inputs of these shapes, by those names."""
        call = _call(model, self.inputs)
        return {name: tensor.numpy() for name, tensor in zip(call.names, call.tensors, strict=True)}

    def told(self, model: nn.Module) -> str:
        """The shapes as text.

        >>> import torch
        >>> net = nn.Linear(3, 2)
        >>> Workload(analyze_inputs(net, ((torch.zeros(2, 3),), {})), batch=8).told(net)
        '8×3'
        """
        shapes = self.shapes(model)
        return str(Shaped({name if len(shapes) > 1 else ONLY: sizes for name, sizes in shapes.items()}))

    def mark(self, model: nn.Module) -> str:
        """What a whole model's latency is kept by: its architecture and its inputs' shapes. A convolution has the same
        weights on a thumbnail and on a photograph."""
        leaves = pytree.tree_leaves(self.inputs)
        shapes = [list(value.shape) if isinstance(value, Tensor) else repr(value) for value in leaves]
        return hashlib.sha256(json.dumps([fingerprint(model), shapes]).encode()).hexdigest()


def workloads(model: nn.Module, groups: Groups, shapes: Iterable[Shaped] = ()) -> tuple[Workload, ...]:
    """The workloads of a model at these shapes; without any, one sample of the example inputs' shape.

    Where only the batch is another one than the example's, the graph of `groups` serves, if its batch is free; for
    other sizes the model is traced again.

    Raises:
        InvalidArgument: a shape is of no input, or of another number of axes; or the groups are others there.
        TraceError: the model can't be traced at a shape.
    """
    return tuple(_workload(model, groups, shaped) for shaped in shapes) or (Workload(groups),)


def _workload(model: nn.Module, groups: Groups, shaped: Shaped) -> Workload:
    inputs = groups.graph.inputs
    call = _call(model, inputs)
    sizes = _sizes(call, shaped)
    changes = {
        (call.places[index], axis): size
        for index, given in sizes.items() for axis, size in enumerate(given) if call.tensors[index].shape[axis] != size
    }
    batch = next((given[0] for index, given in sizes.items() if index in call.batched), call.batch or 1)
    rows = {call.places[index] for index in call.batched}
    inside = {place: size for place, size in changes.items() if place[1] or place[0] not in rows}
    found = groups
    if inside:
        found = _same(groups, analyze_inputs(model, resized(inputs, inside)), shaped)
    if not found.graph.dynamic and batch != batch_size(found.graph.inputs):
        whole = inside | {(place, 0): batch for place in rows}
        found = _same(groups, analyze_inputs(model, resized(inputs, whole)), shaped)
    return Workload(found, batch if found.graph.dynamic else 1, shaped.weight)


def _call(model: nn.Module, inputs: Inputs) -> Call:
    args, kwargs = inputs
    return read_call(model, args or kwargs)


def _sizes(call: Call, shaped: Shaped) -> dict[int, tuple[int, ...]]:
    """The sizes of each tensor of the call that has some."""
    having = [index for index, tensor in enumerate(call.tensors) if tensor.ndim]
    taken = ", ".join(f"{call.names[index]} {tuple(call.tensors[index].shape)}" for index in having)
    found: dict[int, tuple[int, ...]] = {}
    for name, sizes in shaped.sizes.items():
        matching = having if name == ONLY else [index for index in having if call.names[index] == name]
        if len(matching) != 1:
            which = "a shape without a name" if name == ONLY else f"the name {name!r}"
            raise InvalidArgument(
                f"shapes holds {which}, and the model takes {taken}: give the shapes of several inputs by name"
            )
        (index,) = matching
        if len(sizes) != call.tensors[index].ndim:
            raise InvalidArgument(f"shapes: {shaped} has {len(sizes)} axes, and the model takes {taken}")
        found[index] = sizes
    rows = {sizes[0] for index, sizes in found.items() if index in call.batched}
    if len(rows) > 1:
        raise InvalidArgument(f"shapes: {shaped} has batches of {' and '.join(map(str, sorted(rows)))}; give one batch")
    return found


def _same(groups: Groups, other: Groups, shaped: Shaped) -> Groups:
    """The other groups, which hold all of the first."""
    sizes: Mapping[int, int] = Cost(other).sizes
    for leaf, size in Cost(groups).sizes.items():
        if sizes.get(leaf) != size or other.names[leaf] != groups.names[leaf]:
            raise InvalidArgument(
                f"shapes: on {shaped} the model's code takes another way than on example_inputs, and has no such group "
                f"as {groups.names[leaf]} of {size} units; give shapes on which it computes the same"
            )
    return other
