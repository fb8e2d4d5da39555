"""Quantized values: scales and zero points, and products of integers."""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.onnx_import.operators.convolution import conv
from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import MICROSOFT, NotCovered, operator
from surgeon.onnx_import.tensors import HALVES, torch_type
from surgeon.onnx_import.values import normalized


def _along(o: Operator, value: Tensor, x: Tensor) -> Tensor:
    """A scale or zero point as it is broadcast: one number, one for each position of an axis, or one a block."""
    if value.numel() == 1 and value.dim() <= 1:
        return value.reshape(())
    axis, block = normalized(o.get("axis", 1), x.dim()), o.get("block_size", 0)
    if block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return value.reshape(shape)


@operator("DequantizeLinear", buffers=(1,))
@operator("DequantizeLinear", domain=MICROSOFT, buffers=(1,))
def dequantize(o: Operator, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kind = scale.dtype
    made = x.to(kind) if zero is None else x.to(kind) - _along(o, zero, x).to(kind)
    return made * _along(o, scale, x)


@operator("QuantizeLinear", buffers=(1,))
@operator("QuantizeLinear", domain=MICROSOFT, buffers=(1,))
def quantize(o: Operator, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kind = zero.dtype if zero is not None else (
        torch_type(o.get("output_dtype", 0), o.place) if o.get("output_dtype", 0) else torch.uint8
    )
    if o.get("output_dtype", 0) in HALVES:
        raise ValueError("torch has no tensors of integers of 4 bits")
    if kind.is_floating_point:
        raise NotCovered("quantization to floating-point numbers of 8 bits")
    bounds = torch.iinfo(kind)
    exact = x / _along(o, scale, x)
    offset = 0.0 if zero is None else _along(o, zero, x).to(exact.dtype)
    made = (exact.round() + offset).clamp(bounds.min, bounds.max)
    if not o.rounds:
        return made.to(kind)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        # The gradient passes the rounding as if there were none: what is added is zero.
        exact = (exact + offset).clamp(bounds.min, bounds.max)
        made = made.detach() + (exact - exact.detach())
    return made


@operator("DynamicQuantizeLinear")
def dynamic_quantize(o: Operator, x: Tensor) -> list[Tensor]:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round().clamp(0, 255)
    return [((x / scale).round() + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)]


@operator("ConvInteger")
def conv_integer(
    o: Operator, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """In double precision, which holds these sums."""
    x, w = x.double(), w.double()
    x = x if x_zero is None else x - x_zero.double()
    if w_zero is not None:
        w = w - w_zero.double().reshape(-1, *[1] * (w.dim() - 1)) if w_zero.dim() else w - w_zero.double()
    return conv(o, x, w).to(torch.int32)


@operator("MatMulInteger")
def matmul_integer(
    o: Operator, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    a, b = a.double(), b.double()
    if a_zero is not None:
        a = a - (a_zero.double().unsqueeze(-1) if a_zero.dim() else a_zero.double())
    b = b if b_zero is None else b - b_zero.double()
    return torch.matmul(a, b).to(torch.int32)


@operator("QLinearConv")
def qlinear_conv(
    o: Operator, x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor, bias: Tensor | None = None,
) -> Tensor:
    def rows(value: Tensor) -> Tensor:
        return value.reshape(-1, *[1] * (w.dim() - 1)) if value.numel() > 1 else value.reshape(())

    weight = w.double() - rows(w_zero).double()
    made = conv(o, x.double() - x_zero.double(), weight, None if bias is None else bias.double())
    scale = x_scale.double() * w_scale.double() / y_scale.double()
    made = made * (scale.reshape(1, -1, *[1] * (made.dim() - 2)) if scale.numel() > 1 else scale.reshape(()))
    bounds = torch.iinfo(y_zero.dtype)
    return (made.round() + y_zero.double()).clamp(bounds.min, bounds.max).to(y_zero.dtype)


@operator("QLinearMatMul")
def qlinear_matmul(
    o: Operator, a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor,
) -> Tensor:
    if a_scale.dim() and a_scale.numel() > 1:
        raise NotCovered("a scale for each row")
    made = torch.matmul(a.double() - a_zero.double(), b.double() - b_zero.double())
    made = made * (a_scale.double() * b_scale.double() / y_scale.double())
    bounds = torch.iinfo(y_zero.dtype)
    return (made.round() + y_zero.double()).clamp(bounds.min, bounds.max).to(y_zero.dtype)
