"""What distinguishes a smaller model from the module of the file that it comes from: tensors, numbers, attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.onnx_import.module import OnnxModel
from surgeon.onnx_import.running import Body, Operator
from surgeon.onnx_import.values import Numbers


class Unpatchable(Exception):
    """The file can't be made so by changing it; the message is the reason."""


@dataclass(frozen=True)
class Changes:
    """By the names that the module has for them: tensors that are others now, in the file's precision; the numbers that
    an operator takes for an input, by the input's place; and an operator's attributes.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[tuple[str, int], Numbers]
    attributes: Mapping[tuple[str, str], Any]


def changes(file: OnnxModel, slim: nn.Module) -> Changes:
    """What of `slim` is unlike `file`, the module of the file.

    Raises:
        Unpatchable: it is made of other operators.
    """
    if not isinstance(slim, OnnxModel):
        raise Unpatchable("it is a graph, or another module, of which the file's operators can't be told")
    before, after = dict(file.named_modules()), dict(slim.named_modules())
    if odd := before.keys() ^ after.keys():
        raise Unpatchable(f"{sorted(odd)[0]!r} is not in both, the module of the file and the smaller one")
    numbers: dict[tuple[str, int], Numbers] = {}
    attributes: dict[tuple[str, str], Any] = {}
    for name, old in before.items():
        new = after[name]
        if type(new).__name__ != type(old).__name__ or new._forward_hooks or new._forward_pre_hooks:
            raise Unpatchable(f"{name!r} was replaced, or has hooks")
        if isinstance(old, Body) and isinstance(new, Body) and (old.steps, old.results) != (new.steps, new.results):
            raise Unpatchable(f"{name!r} runs other operators")
        if isinstance(old, Operator) and isinstance(new, Operator):
            numbers.update({(name, place): value for place, value in _numbers(old, new)})
            attributes.update({(name, key): value for key, value in _attributes(old, new)})
        if isinstance(old, Body):
            attributes.update({(f"{name}.{child}", "hidden_size"): size for child, size in _hidden(old, slim)})
    return Changes(dict(_tensors(file, slim)), numbers, attributes)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers, saved ones or not."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _tensors(file: OnnxModel, slim: OnnxModel) -> Iterator[tuple[str, Tensor]]:
    old, new = tensors_of(file), tensors_of(slim)
    if odd := old.keys() ^ new.keys():
        raise Unpatchable(f"the tensor {sorted(odd)[0]!r} is not in both, the module of the file and the smaller one")
    for name, tensor in old.items():
        now = new[name].detach().cpu().to(tensor.dtype)
        if now.shape != tensor.shape or not torch.equal(now.nan_to_num(), tensor.detach().nan_to_num()):
            yield name, now


def _numbers(old: Operator, new: Operator) -> Iterator[tuple[int, Numbers]]:
    for place in old.kept_places:
        before, after = old.kept(place), new.kept(place)
        assert before is not None and after is not None
        if before.items != after.items:
            yield place, after


def _hidden(body: Body, slim: OnnxModel) -> Iterator[tuple[str, int]]:
    """The hidden sizes of recurrent layers, which follow from their weights."""
    tensors = {value: name for name, value in slim.initializers.items()}
    now = tensors_of(slim)
    for step in body.steps:
        operator = body._modules[step.child]
        if isinstance(operator, Operator) and operator.kind in ("LSTM", "GRU", "RNN") and step.inputs[2] in tensors:
            size = now[tensors[step.inputs[2]]].shape[2]
            if size != operator.get("hidden_size", size):
                yield step.child, int(size)


def _attributes(old: Operator, new: Operator) -> Iterator[tuple[str, Any]]:
    for key, value in old.attributes.items():
        now = new.attributes.get(key)
        if isinstance(value, int | float | str | tuple) and now != value:
            yield key, now
