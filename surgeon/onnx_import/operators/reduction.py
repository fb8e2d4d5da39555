"""Reductions, sorted values, and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import NotCovered, axes_of, operator
from surgeon.onnx_import.values import Value, integers, normalized, number, told

_Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((normalized(axis, x.dim()) for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).trunc().to(x.dtype)


def _in_type(function: _Reduction) -> _Reduction:
    """Sums of integers keep their type."""
    return lambda x, axes, keep: function(x, axes, keep).to(x.dtype)


_KINDS: dict[str, _Reduction] = {
    "ReduceMean": _mean,
    "ReduceSum": _in_type(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _in_type(_prod),
    "ReduceL1": _in_type(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _in_type(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep).sqrt()),
    "ReduceSumSquare": _in_type(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


@operator(*_KINDS, numbers=(1,))
def reduce_(o: Operator, x: Tensor, axes: Value | None = None) -> Tensor:
    chosen = axes_of(o, axes)
    if not chosen:
        if o.get("noop_with_empty_axes", 0):
            return _alone(o.kind, x)
        chosen = list(range(x.dim()))
    if not chosen:
        return _alone(o.kind, x)
    if o.kind in ("ReduceMax", "ReduceMin") and any(told(size) and size == 0 for size in x.shape):
        raise NotCovered("the largest of nothing")
    return _KINDS[o.kind](x, [normalized(axis, x.dim()) for axis in chosen], bool(o.get("keepdims", 1)))


def _alone(kind: str, x: Tensor) -> Tensor:
    """A reduction over no axis."""
    match kind:
        case "ReduceL1" | "ReduceL2":
            return x.abs()
        case "ReduceSumSquare":
            return x * x
        case "ReduceLogSum":
            return x.log()
    return x


@operator("ArgMax", "ArgMin")
def position(o: Operator, x: Tensor) -> Tensor:
    axis, keep = normalized(o.get("axis", 0), x.dim()), bool(o.get("keepdims", 1))
    run = torch.argmax if o.kind == "ArgMax" else torch.argmin
    if o.get("select_last_index", 0):
        return x.shape[axis] - 1 - run(x.flip(axis), axis, keepdim=keep)
    return run(x, axis, keepdim=keep)


@operator("TopK", numbers=(1,))
def top_k(o: Operator, x: Tensor, k: Value | None = None) -> list[Tensor]:
    """Sorted by torch's stable sort, since ONNX takes the first of equal values."""
    count = integers(k)[0] if k is not None else o.get("k", 1)
    axis = normalized(o.get("axis", -1), x.dim())
    values, index = torch.sort(x, dim=axis, descending=bool(o.get("largest", 1)), stable=True)
    return [values.narrow(axis, 0, count), index.narrow(axis, 0, count)]


@operator("CumSum", "CumProd", numbers=(1,))
def cumulated(o: Operator, x: Tensor, axis: Value) -> Tensor:
    place = normalized(int(number(axis)), x.dim())
    run: Any = torch.cumsum if o.kind == "CumSum" else torch.cumprod
    x = x.flip(place) if o.get("reverse", 0) else x
    if o.get("exclusive", 0):
        first = torch.full_like(x.narrow(place, 0, 1), 0 if o.kind == "CumSum" else 1)
        x = torch.cat([first, x.narrow(place, 0, x.shape[place] - 1)], place)
    made = run(x, place, dtype=x.dtype)
    return made.flip(place) if o.get("reverse", 0) else made
