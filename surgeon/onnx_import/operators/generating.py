"""Operators that make tensors of sizes and numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgeon.onnx_import.running import Operator, Scope
from surgeon.onnx_import.table import operator
from surgeon.onnx_import.tensors import torch_type
from surgeon.onnx_import.values import Numbers, Value, as_tensor, bounded, integers, number, precise


@operator("Constant", mixed=True)
def constant(o: Operator) -> Value:
    """A constant of a function, which its call gave a value; others are worked out when a file is read."""
    for name, value in o.attributes.items():
        if name in ("value_float", "value_floats"):
            return Numbers.of(value, torch.float32)
        if name in ("value_int", "value_ints"):
            return Numbers.of(value, torch.int64)
    raise ValueError("it gives nothing")


@operator("ConstantOfShape", numbers=(0,), scoped=True)
def constant_of_shape(o: Operator, scope: Scope, sizes: Value) -> Tensor:
    value = o.get("value", None)
    given = value.numbers() if value is not None else Numbers.of([0.0], torch.float32)
    kind = precise(given.dtype)
    return torch.full(bounded(integers(sizes), kind), number(given), dtype=kind, device=scope.device)


@operator("Range", numbers=(0, 1, 2), scoped=True)
def range_(o: Operator, scope: Scope, start: Numbers, limit: Numbers, step: Numbers) -> Tensor:
    first, last, by = (number(each) for each in (start, limit, step))
    kind = precise(start.dtype)
    if all(isinstance(each, int | float) for each in (first, last, by)):
        bounded([max(int((last - first) / by), 0)], kind)
    return torch.arange(first, last, by, dtype=kind, device=scope.device)


@operator("EyeLike")
def eye_like(o: Operator, x: Tensor) -> Tensor:
    rows, columns = x.shape
    kind = precise(torch_type(o.get("dtype", 0), o.place)) if o.get("dtype", 0) else x.dtype
    k = o.get("k", 0)
    places = torch.arange(columns, device=x.device)[None, :] - torch.arange(rows, device=x.device)[:, None]
    return (places == k).to(kind)


@operator("OneHot", numbers=(1, 2))
def one_hot(o: Operator, index: Tensor, depth: Numbers, values: Numbers) -> Tensor:
    count = integers(depth)[0]
    off, on = values.items
    axis = o.get("axis", -1)
    axis = axis + index.dim() + 1 if axis < 0 else axis
    bounded([*index.shape, count])
    index = index.long()
    index = torch.where(index < 0, index + count, index)
    shape = [1] * (index.dim() + 1)
    shape[axis] = -1
    places = torch.arange(count, device=index.device).reshape(shape)
    hot = index.unsqueeze(axis) == places
    kind = precise(values.dtype)
    return torch.where(hot, torch.tensor(on, dtype=kind), torch.tensor(off, dtype=kind))


@operator("Trilu", numbers=(1,))
def trilu(o: Operator, x: Tensor, k: Numbers | None = None) -> Tensor:
    diagonal = int(number(k)) if k is not None else 0
    return x.triu(diagonal) if o.get("upper", 1) else x.tril(diagonal)


@operator("NonZero")
def non_zero(o: Operator, x: Tensor) -> Tensor:
    return as_tensor(x).nonzero().t()


@operator("HannWindow", "HammingWindow", "BlackmanWindow", numbers=(0,), scoped=True)
def window(o: Operator, scope: Scope, size: Numbers) -> Tensor:
    kinds: dict[str, Any] = {"HannWindow": torch.hann_window, "HammingWindow": torch.hamming_window,
                              "BlackmanWindow": torch.blackman_window}
    count = bounded(integers(size), torch.float64)[0]
    kind = precise(torch_type(o.get("output_datatype", 1), o.place))
    options = {"alpha": 25 / 46, "beta": 21 / 46} if o.kind == "HammingWindow" else {}
    return kinds[o.kind](count, periodic=bool(o.get("periodic", 1)), dtype=kind, device=scope.device, **options)
