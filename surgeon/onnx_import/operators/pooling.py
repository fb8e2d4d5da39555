"""Pooling, along one to three axes or over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.operators.convolution import padded, pads_of, spatial
from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import NotCovered, operator

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@operator("MaxPool")
def max_pool(o: Operator, x: Tensor) -> Any:
    kernel = list(o.get("kernel_shape", ()))
    count = len(kernel)
    if count not in _MAX or x.dim() != count + 2 or (o.outputs > 1 and o.get("storage_order", 0)):
        raise NotCovered(f"pooling along {count} axes of {x.dim()}, in order {o.get('storage_order', 0)}")
    stride, dilation = spatial(o, "strides", count), spatial(o, "dilations", count)
    before, after = pads_of(o, x.shape[2:], kernel, stride, dilation)
    inside = before == after and _within(before, kernel)
    if o.outputs > 1 and not inside:
        raise NotCovered("positions of a maximum in padded inputs")
    if not x.is_floating_point() and o.outputs < 2:
        wide = x.to(torch.float64)
        return _max(wide, o, kernel, stride, dilation, before, after, inside).to(x.dtype)
    if o.outputs < 2:
        return _max(x, o, kernel, stride, dilation, before, after, inside)
    made, index = _MAX[count](x, kernel, stride, before, dilation, bool(o.get("ceil_mode", 0)), return_indices=True)
    size = math.prod(x.shape[2:])
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[0], x.shape[1], *[1] * count)
    return [made, index + planes * size]


def _within(pads: list[Any], kernel: list[int]) -> bool:
    """Whether torch pads so much itself."""
    return all(isinstance(pad, int) and 0 <= pad <= k // 2 for pad, k in zip(pads, kernel, strict=True))


def _max(
    x: Tensor, o: Operator, kernel: list[int], stride: list[int], dilation: list[int], before: list[Any],
    after: list[Any], inside: bool,
) -> Tensor:
    if not inside:
        x, before = padded(x, before, after, -math.inf), [0] * len(kernel)
    made: Tensor = _MAX[len(kernel)](x, kernel, stride, before, dilation, bool(o.get("ceil_mode", 0)))
    return made


@operator("AveragePool")
def average_pool(o: Operator, x: Tensor) -> Tensor:
    kernel = list(o.get("kernel_shape", ()))
    count = len(kernel)
    dilation = spatial(o, "dilations", count)
    if count not in _AVERAGE or x.dim() != count + 2 or any(each > 1 for each in dilation):
        raise NotCovered(f"average pooling along {count} axes, dilated by {dilation}")
    stride = spatial(o, "strides", count)
    before, after = pads_of(o, x.shape[2:], kernel, stride, dilation)
    ceil, whole = bool(o.get("ceil_mode", 0)), bool(o.get("count_include_pad", 0))
    run = _AVERAGE[count]
    if before == after and _within(before, kernel):
        return run(x, kernel, stride, before, ceil, whole)
    if ceil:
        raise NotCovered("average pooling with padding of two sizes, rounded up")
    made = run(padded(x, before, after), kernel, stride)
    if whole:
        return made
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    return made / run(padded(ones, before, after), kernel, stride)


@operator("LpPool")
def lp_pool(o: Operator, x: Tensor) -> Tensor:
    kernel = list(o.get("kernel_shape", ()))
    count, power = len(kernel), o.get("p", 2)
    dilation = spatial(o, "dilations", count)
    if count not in _AVERAGE or any(each > 1 for each in dilation) or o.get("ceil_mode", 0):
        raise NotCovered(f"pooling along {count} axes")
    stride = spatial(o, "strides", count)
    before, after = pads_of(o, x.shape[2:], kernel, stride, dilation)
    mean = _AVERAGE[count](padded(x.abs() ** power, before, after), kernel, stride)
    return (mean * math.prod(kernel)) ** (1 / power)


@operator("GlobalAveragePool")
def global_average_pool(o: Operator, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(o: Operator, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(o: Operator, x: Tensor) -> Tensor:
    power = o.get("p", 2)
    return (x.abs() ** power).sum(list(range(2, x.dim())), keepdim=True) ** (1 / power)
