"""Slices of tensors, by bounds that are sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import operator
from surgeon.onnx_import.values import Value, integers, normalized, told

_FAR = (1 << 31) - 1


def slices(
    o: Operator, rank: int, starts: Value | None = None, ends: Value | None = None, axes: Value | None = None,
    steps: Value | None = None,
) -> Iterator[tuple[int, Any, Any, int]]:
    """For each axis that is cut: the axis, start, end and step."""
    first = integers(starts) if starts is not None else list(o.get("starts", ()))
    last = integers(ends) if ends is not None else list(o.get("ends", ()))
    along = integers(axes) if axes is not None else o.get("axes", None)
    by = integers(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(along or range(len(first)), first, last, by, strict=True):
        yield normalized(int(axis), rank), start, end, int(step)


@operator("Slice", numbers=(1, 2, 3, 4))
def slice_(o: Operator, x: Tensor, *bounds: Value | None) -> Tensor:
    for axis, start, end, step in slices(o, x.dim(), *bounds):
        x = sliced(x, axis, start, end, step)
    return x


def sliced(x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    """One axis from start to end, as Python's slices, also by negative steps."""
    if step > 0:
        if isinstance(end, int) and end >= _FAR:
            end = None
        if isinstance(start, int) and start == 0 and end is None and step == 1:
            return x
        return torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    size = x.shape[axis]
    # from the back: what stands at position p stands at size - 1 - p
    whole_start = isinstance(start, int) and (start == -1 or start >= _FAR)
    back = None if whole_start else (-start - 1 if isinstance(start, int) and start < 0 else size - 1 - start)
    if isinstance(back, int):
        back = max(back, 0)
    if isinstance(end, int) and (end <= -_FAR or (told(size) and end < -size)):
        stop = None
    else:
        stop = -end - 1 if isinstance(end, int) and end < 0 else size - 1 - end
        if isinstance(stop, int):
            stop = max(stop, 0)
    flipped = x.flip(axis)
    if back is None and stop is None and step == -1:
        return flipped
    return torch.ops.aten.slice.Tensor(flipped, axis, back, stop, -step)
