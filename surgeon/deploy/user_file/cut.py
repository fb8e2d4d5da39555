"""The cut alone: the file right after it, and the original with zeros in place of what was removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from surgeon.deploy.inputs import Call
from surgeon.deploy.user_file.changes import Changes, changes, tensors_of
from surgeon.deploy.user_file.patch import patched
from surgeon.frontend.copies import duplicate
from surgeon.onnx_import.module import OnnxModel
from surgeon.plans.plan import Plan

#: How far the module with zeros may be from the smaller one in float64, by its largest output, to be the same function.
SAME = 1e-9


@dataclass(frozen=True)
class Cut:
    """Two files that compute the same: `slim` as it was right after the cut, `zeroed` the original with zeros."""

    slim: ModelProto = field(repr=False)
    zeroed: ModelProto = field(repr=False)


def cut_of(file: OnnxModel, slim: OnnxModel, plan: Plan, call: Call) -> Cut | str:
    """The cut that `plan` made of `file`, whatever was fitted or trained since; or why it can't be held against it."""
    sliced: dict[str, Tensor] = {}
    zeros: dict[str, Tensor] = {}
    for name, tensor in tensors_of(file).items():
        sliced[name], zeroed = tensor.detach(), tensor.detach().clone()
        for axis, keep in plan.tensor(name).items():
            positions = torch.tensor(keep)
            gone = torch.ones(tensor.shape[axis], dtype=torch.bool)
            gone[positions] = False
            sliced[name] = sliced[name].index_select(axis, positions)
            zeros[name] = zeroed.index_fill_(axis, gone.nonzero().reshape(-1), 0)
    if any(tensors_of(slim)[name].shape != tensor.shape for name, tensor in sliced.items()):
        return "the model was changed since the cut"
    smaller = _holding(slim, sliced)
    del sliced  # a file may be most of the memory
    if not _same(lambda: _holding(file, zeros), lambda: duplicate(smaller), call):
        return "zeros are not the same as nothing here, as in a mean over removed channels"
    made = patched(file, changes(file, smaller))
    del made.graph.value_info[:]  # sizes as they were
    return Cut(made, patched(file, Changes(zeros, {}, {})))


def _holding(model: OnnxModel, values: Mapping[str, Tensor]) -> OnnxModel:
    """A copy of a module with other values."""
    copy = duplicate(model)
    with torch.no_grad():
        for name, tensor in tensors_of(copy).items():
            if name in values:
                tensor.copy_(values[name])
    return copy


def _same(one: Callable[[], nn.Module], other: Callable[[], nn.Module], call: Call) -> bool:
    """Whether two modules, which are made one after the other, compute the same in float64."""
    args, kwargs = call.bind(tuple(each.double() if each.is_floating_point() else each for each in call.tensors))
    with torch.no_grad():
        found = [_outputs(make().double().eval()(*args, **kwargs)) for make in (one, other)]
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= SAME * b.abs().max())
        for a, b in zip(*found, strict=True) if a.numel()
    )


def _outputs(value: Any) -> list[Tensor]:
    return [each.double() for each in (value if isinstance(value, tuple) else (value,))]
