"""onnxruntime's operators between layers of integers: dequantized, computed, and quantized again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import MICROSOFT, NotCovered, operator


def _real(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """What integers of one scale stand for."""
    whole = x.double() if zero is None else x.double() - zero.double().reshape(())
    return whole * scale.double().reshape(())


def _whole(x: Tensor, scale: Tensor, zero: Tensor | None, like: torch.dtype) -> Tensor:
    bounds = torch.iinfo(like)
    made = (x / scale.double().reshape(())).round()
    made = made if zero is None else made + zero.double().reshape(())
    return made.clamp(bounds.min, bounds.max).to(like)


_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "QLinearAdd": lambda a, b: a + b, "QLinearMul": lambda a, b: a * b,
}


@operator(*_PAIRS, domain=MICROSOFT, buffers=(1, 4, 6))
def pair(
    o: Operator, a: Tensor, a_scale: Tensor, a_zero: Tensor | None, b: Tensor, b_scale: Tensor, b_zero: Tensor | None,
    scale: Tensor, zero: Tensor | None = None,
) -> Tensor:
    made = _PAIRS[o.kind](_real(a, a_scale, a_zero), _real(b, b_scale, b_zero))
    return _whole(made, scale, zero, a.dtype)


@operator("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT, buffers=(1, 3))
def single(
    o: Operator, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None = None
) -> Tensor:
    value = _real(x, x_scale, x_zero)
    made = torch.sigmoid(value) if o.kind == "QLinearSigmoid" else (
        torch.nn.functional.leaky_relu(value, o.get("alpha", 0.01))
    )
    return _whole(made, scale, zero, x.dtype)


@operator("QLinearGlobalAveragePool", domain=MICROSOFT, buffers=(1, 3))
def global_pool(o: Operator, x: Tensor, x_scale: Tensor, x_zero: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    axes = list(range(1, x.dim() - 1)) if o.get("channels_last", 0) else list(range(2, x.dim()))
    return _whole(_real(x, x_scale, x_zero).mean(axes, keepdim=True), scale, zero, x.dtype)


@operator("QLinearConcat", domain=MICROSOFT)
def concat(o: Operator, scale: Tensor, zero: Tensor, *values: Tensor) -> Tensor:
    """Each value comes with its scale and zero point."""
    if len(values) % 3:
        raise ValueError(f"{len(values)} inputs for values with scales and zero points")
    parts = [_real(*values[at : at + 3]) for at in range(0, len(values), 3)]
    return _whole(torch.cat(parts, o.get("axis", 1)), scale, zero, values[0].dtype)


@operator("QGemm", domain=MICROSOFT, buffers=(1, 7))
def gemm(
    o: Operator, a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
    bias: Tensor | None = None, scale: Tensor | None = None, zero: Tensor | None = None,
) -> Tensor:
    """A bias is of integers, of the scale of the products; without a `scale` the result is of floats."""
    if a.dim() != 2 or b.dim() != 2 or a_scale.numel() > 1:
        raise NotCovered("a scale for each row")
    a = a.t() if o.get("transA", 0) else a
    weight = b if o.get("transB", 0) else b.t()
    scales, zeros = (value.double().reshape(-1, 1) for value in (b_scale, b_zero))  # one, or one a column
    whole = torch.nn.functional.linear(a.double() - a_zero.double().reshape(()), weight.double() - zeros)
    whole = whole * o.get("alpha", 1.0)
    whole = whole if bias is None else whole + bias.double()
    made = whole * (a_scale.double().reshape(()) * scales.reshape(-1))
    return made.to(a_scale.dtype) if scale is None else _whole(made, scale, zero, a.dtype)
