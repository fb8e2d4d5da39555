"""Norms and softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import NotCovered, operator
from surgeon.onnx_import.values import normalized, told


@operator("BatchNormalization", buffers=(3, 4))
def batch_norm(o: Operator, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
    """In train mode by the batch's own statistics, which the running ones follow."""
    momentum = 1 - o.get("momentum", 0.9)
    if not o.get("spatial", 1):
        raise NotCovered("statistics of each position, as before opset 9")
    made = F.batch_norm(x, mean, variance, scale, bias, o.training, momentum, o.get("epsilon", 1e-5))
    return made if o.outputs == 1 else [made, mean, variance, mean, variance][: o.outputs]


@operator("InstanceNormalization")
def instance_norm(o: Operator, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=o.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_norm(o: Operator, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis = normalized(o.get("axis", -1), x.dim())
    eps = o.get("epsilon", 1e-5)
    if tuple(scale.shape) == tuple(x.shape[axis:]) and (bias is None or bias.shape == scale.shape):
        made = F.layer_norm(x, list(scale.shape), scale, bias, eps)
    else:
        made = F.layer_norm(x, list(x.shape[axis:]), None, None, eps) * scale
        made = made if bias is None else made + bias
    if o.outputs == 1:
        return made
    axes = list(range(axis, x.dim()))
    mean = x.mean(axes, keepdim=True)
    return [made, mean, torch.rsqrt(((x - mean) ** 2).mean(axes, keepdim=True) + eps)][: o.outputs]


@operator("RMSNormalization")
def rms_norm(o: Operator, x: Tensor, scale: Tensor) -> Tensor:
    axis = normalized(o.get("axis", -1), x.dim())
    if tuple(scale.shape) == tuple(x.shape[axis:]):
        return F.rms_norm(x, list(scale.shape), scale, o.get("epsilon", 1e-5))
    return F.rms_norm(x, list(x.shape[axis:]), None, o.get("epsilon", 1e-5)) * scale


@operator("GroupNormalization")
def group_norm(o: Operator, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, eps = o.get("num_groups", 1), o.get("epsilon", 1e-5)
    if o.opset >= 21:
        return F.group_norm(x, groups, scale, bias, eps)
    made = F.group_norm(x, groups, None, None, eps)
    parts = made.reshape(made.shape[0], groups, -1, *made.shape[2:])
    rows = (1, groups, 1, *[1] * (x.dim() - 2))  # one scale a group, as before opset 21
    return (parts * scale.reshape(rows) + bias.reshape(rows)).reshape(made.shape)


@operator("LpNormalization")
def lp_norm(o: Operator, x: Tensor) -> Tensor:
    length = x.norm(o.get("p", 2), dim=o.get("axis", -1), keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / length)


@operator("MeanVarianceNormalization")
def mean_variance_norm(o: Operator, x: Tensor) -> Tensor:
    axes = list(o.get("axes", (0, 2, 3)))
    mean = x.mean(axes, keepdim=True)
    square = (x * x).mean(axes, keepdim=True) - mean * mean
    return (x - mean) / (square.sqrt() + 1e-9)


@operator("LRN")
def lrn(o: Operator, x: Tensor) -> Tensor:
    if o.get("size", 1) % 2 == 0:
        raise NotCovered("an even number of channels")
    return F.local_response_norm(x, o.get("size", 1), o.get("alpha", 1e-4), o.get("beta", 0.75), o.get("bias", 1.0))


@operator("Softmax", "LogSoftmax")
def softmax(o: Operator, x: Tensor) -> Tensor:
    """Before opset 13, all axes from the given one on are one."""
    run = torch.softmax if o.kind == "Softmax" else torch.log_softmax
    if o.opset >= 13:
        return run(x, o.get("axis", -1))
    axis = normalized(o.get("axis", 1), x.dim())
    if axis >= x.dim() - 1 or all(told(size) and size == 1 for size in x.shape[axis + 1 :]):
        return run(x, axis)
    return run(x.flatten(axis), axis).reshape(x.shape)


@operator("Hardmax")
def hardmax(o: Operator, x: Tensor) -> Tensor:
    axis = normalized(o.get("axis", -1 if o.opset >= 13 else 1), x.dim())
    flat = x if o.opset >= 13 else x.flatten(axis)
    made = torch.zeros_like(flat).scatter(axis, flat.argmax(axis, keepdim=True), 1.0)
    return made.reshape(x.shape)
