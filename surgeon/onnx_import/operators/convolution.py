"""Convolutions and transposed convolutions, along one to three axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.operators.slicing import sliced
from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import MICROSOFT, NotCovered, operator

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def pads_of(
    o: Operator, sizes: Sequence[Any], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[Any], list[Any]]:
    """How much is padded before and after each axis of these sizes."""
    count = len(sizes)
    match o.get("auto_pad", "NOTSET"):
        case "NOTSET":
            pads = list(o.get("pads", (0,) * (2 * count)))
            if len(pads) != 2 * count:
                raise ValueError(f"pads has {len(pads)} numbers for {count} axes")
            return pads[:count], pads[count:]
        case "VALID":
            return [0] * count, [0] * count
        case "SAME_UPPER" | "SAME_LOWER" as same:
            each = zip(sizes, kernel, stride, dilation, strict=True)
            whole = [_missing(size, (k - 1) * d + 1, s) for size, k, s, d in each]
            less, more = [pad // 2 for pad in whole], [pad - pad // 2 for pad in whole]
            return (less, more) if same == "SAME_UPPER" else (more, less)
    raise ValueError(f"auto_pad is {o.get('auto_pad', '')!r}")


def _missing(size: Any, kernel: int, stride: int) -> Any:
    """What is padded in all, so that there is an output for each stride."""
    if stride == 1:
        return kernel - 1
    return torch.sym_max((((size + stride - 1) // stride) - 1) * stride + kernel - size, 0)


def padded(x: Tensor, before: Sequence[Any], after: Sequence[Any], value: float = 0.0) -> Tensor:
    """The last axes padded, each by its own."""
    flat = [amount for pair in reversed([*zip(before, after, strict=True)]) for amount in pair]
    if all(isinstance(amount, int) and amount == 0 for amount in flat):
        return x
    return F.pad(x, flat, value=value)


def spatial(o: Operator, name: str, count: int) -> list[int]:
    found = list(o.get(name, (1,) * count))
    if len(found) != count or any(each < 1 for each in found):
        raise ValueError(f"{name} is {found} for {count} axes")
    return found


@operator("Conv")
@operator("Conv", "FusedConv", domain=MICROSOFT)
def conv(o: Operator, x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    count = weight.dim() - 2
    if count not in _CONV:
        raise NotCovered(f"a convolution along {count} axes")
    if x.dim() != weight.dim():
        raise ValueError(f"a weight of {weight.dim()} axes for an input of {x.dim()}")
    stride, dilation = spatial(o, "strides", count), spatial(o, "dilations", count)
    before, after = pads_of(o, x.shape[2:], weight.shape[2:], stride, dilation)
    if before == after and all(isinstance(each, int) and each >= 0 for each in before):
        padding = before
    else:
        x, padding = padded(x, before, after), [0] * count
    made = _CONV[count](x, weight, bias, stride, padding, dilation, groups_of(o, x, weight.shape[1]))
    return made if o.kind == "Conv" else _activated(o, made if plus is None else made + plus)


def groups_of(o: Operator, x: Tensor, per_group: int) -> int:
    """The groups of a convolution, by its tensors: they stay right where channels are removed."""
    wanted = o.get("group", 1)
    if wanted == 1:
        return 1
    channels = int(x.shape[1])
    if channels % per_group:
        raise ValueError(f"{channels} channels for a weight of {per_group} a group")
    return channels // per_group


def _activated(o: Operator, x: Tensor) -> Tensor:
    parameters = o.get("activation_params", ())
    match o.get("activation", ""):
        case "":
            return x
        case "Relu":
            return torch.relu(x)
        case "Sigmoid":
            return torch.sigmoid(x)
        case "Tanh":
            return torch.tanh(x)
        case "LeakyRelu":
            return F.leaky_relu(x, parameters[0] if parameters else 0.01)
        case "Clip":
            return x.clamp(*parameters)
        case "HardSigmoid":
            return (x * parameters[0] + parameters[1]).clamp(0, 1)
    raise NotCovered(f"the activation {o.get('activation', '')}")


@operator("ConvTranspose")
def conv_transpose(o: Operator, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    count = weight.dim() - 2
    if count not in _TRANSPOSED:
        raise NotCovered(f"a convolution along {count} axes")
    stride, dilation = spatial(o, "strides", count), spatial(o, "dilations", count)
    extra = list(o.get("output_padding", (0,) * count))
    wanted = o.get("output_shape", None)
    kernel = weight.shape[2:]
    if wanted is not None:
        wanted = list(wanted)[-count:]
    elif str(o.get("auto_pad", "NOTSET")).startswith("SAME"):
        wanted = [size * s for size, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is None:
        before, after = pads_of(o, x.shape[2:], kernel, stride, dilation)
    else:
        spare = [
            s * (size - 1) + e + (k - 1) * d + 1 - w
            for s, size, e, k, d, w in zip(stride, x.shape[2:], extra, kernel, dilation, wanted, strict=True)
        ]
        extra = [e + (0 if isinstance(each, int) and each >= 0 else max(-int(each), 0))
                 for e, each in zip(extra, spare, strict=True)]
        spare = [each if isinstance(each, int) and each >= 0 else max(int(each), 0) for each in spare]
        less, more = [each // 2 for each in spare], [each - each // 2 for each in spare]
        before, after = (more, less) if o.get("auto_pad", "NOTSET") != "SAME_UPPER" else (less, more)
    groups = o.get("group", 1)
    run = _TRANSPOSED[count]
    if before == after and all(each >= 0 for each in before) and all(
        e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)
    ):
        return run(x, weight, bias, stride, before, extra, groups, dilation)
    made = padded(run(x, weight, bias, stride, 0, 0, groups, dilation), [0] * count, extra)
    if bias is not None and any(extra):
        raise NotCovered("an output that is padded, with a bias")
    for axis, (less, more) in enumerate(zip(before, after, strict=True)):
        made = sliced(made, axis + 2, less, made.shape[axis + 2] - more, 1)
    return made
