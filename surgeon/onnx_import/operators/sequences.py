"""Sequences of tensors, which are lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import operator
from surgeon.onnx_import.values import Numbers, Value, as_numbers, as_tensor, integers, normalized, number


@operator("SequenceEmpty", mixed=True)
def empty(o: Operator) -> list[Any]:
    return [[]]


@operator("SequenceConstruct")
def construct(o: Operator, *values: Tensor) -> list[Any]:
    return [list(values)]


@operator("SequenceInsert", numbers=(2,))
def insert(o: Operator, items: list[Any], value: Tensor, place: Numbers | None = None) -> list[Any]:
    made = list(items)
    made.insert(len(made) if place is None else number(place), value)
    return [made]


@operator("SequenceErase", numbers=(1,))
def erase(o: Operator, items: list[Any], place: Numbers | None = None) -> list[Any]:
    made = list(items)
    made.pop(-1 if place is None else number(place))
    return [made]


@operator("SequenceAt", numbers=(1,))
def at(o: Operator, items: list[Any], place: Numbers) -> list[Any]:
    return [items[number(place)]]


@operator("SequenceLength", mixed=True)
def length(o: Operator, items: list[Any]) -> Numbers:
    return Numbers.of(len(items), torch.int64)


@operator("SplitToSequence", numbers=(1,))
def split(o: Operator, x: Tensor, sizes: Value | None = None) -> list[Any]:
    axis = normalized(o.get("axis", 0), x.dim())
    if sizes is None:
        parts = list(x.split(1, axis))
        return [parts if o.get("keepdims", 1) else [part.squeeze(axis) for part in parts]]
    lengths = integers(sizes)
    return [list(x.split(lengths if as_numbers(sizes).array.ndim else lengths[0], axis))]


@operator("ConcatFromSequence")
def concat(o: Operator, items: list[Any]) -> Tensor:
    values = [as_tensor(each) for each in items]
    return torch.stack(values, o.get("axis", 0)) if o.get("new_axis", 0) else torch.cat(values, o.get("axis", 0))
