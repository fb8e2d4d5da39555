"""Operators that work value by value, with broadcasting."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import MICROSOFT, NotCovered, operator
from surgeon.onnx_import.tensors import HALVES, torch_type
from surgeon.onnx_import.values import Numbers, Value, as_tensor, number, precise

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil, "Cos": torch.cos,
    "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "IsNaN": torch.isnan,
    "Log": torch.log, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
}


def _unary(kind: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(o: Operator, x: Tensor) -> Tensor:
        return kind(x)

    return run


for _name, _kind in _UNARY.items():
    operator(_name)(_unary(_kind))


def _divided(a: Any, b: Any) -> Any:
    whole = not isinstance(a, float) and not (isinstance(a, Tensor) and a.is_floating_point())
    if whole and not (isinstance(b, float) or (isinstance(b, Tensor) and b.is_floating_point())):
        return torch.div(a, b, rounding_mode="trunc")
    return a / b


def _shifted(o: Operator, a: Tensor, b: Tensor) -> Tensor:
    return a << b if o.get("direction", "") == "LEFT" else a >> b


def _power(a: Any, b: Any) -> Any:
    """The base tells the type."""
    if not isinstance(a, Tensor):
        a = torch.scalar_tensor(a, dtype=torch.float32, device=b.device)
    made = a**b
    return made.to(a.dtype) if made.dtype is not a.dtype else made


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Div": _divided, "Pow": _power,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "Equal": lambda a, b: a == b,
    "Greater": lambda a, b: a > b, "Less": lambda a, b: a < b, "GreaterOrEqual": lambda a, b: a >= b,
    "LessOrEqual": lambda a, b: a <= b, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
_OF_TENSORS = {"And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}


def operands(a: Value, b: Value, tensors: bool = False) -> tuple[Any, Any]:
    """Two operands; one number beside a tensor stays one, where that does not change the result's shape or type."""
    device = next((each.device for each in (a, b) if isinstance(each, Tensor)), None)

    def one(value: Value, other: Value) -> Any:
        if not isinstance(value, Numbers):
            return value
        plain = isinstance(other, Tensor) and len(value.items) == 1 and value.array.ndim <= other.dim()
        alike = isinstance(other, Tensor) and other.dtype.is_floating_point == value.dtype.is_floating_point
        return value.items[0] if plain and alike and not tensors else as_tensor(value, device)

    return one(a, b), one(b, a)


def _binary(name: str, kind: Callable[[Any, Any], Any]) -> Callable[..., Tensor]:
    def run(o: Operator, a: Value, b: Value) -> Tensor:
        first, second = operands(a, b, name in _OF_TENSORS)
        if o.opset < 7 and o.get("broadcast", 0):
            raise NotCovered("it broadcasts as before opset 7")
        return kind(first, second)

    return run


for _name, _pair in _BINARY.items():
    operator(_name, mixed=True)(_binary(_name, _pair))


@operator("BitShift")
def bit_shift(o: Operator, a: Tensor, b: Tensor) -> Tensor:
    return _shifted(o, a, b)


@operator("Mod", mixed=True)
def mod(o: Operator, a: Value, b: Value) -> Tensor:
    first, second = operands(a, b)
    if not isinstance(first, Tensor):
        first = as_tensor(a, second.device)
    return torch.fmod(first, second) if o.get("fmod", 0) else torch.remainder(first, second)


@operator("Max", "Min", mixed=True)
def extreme(o: Operator, *values: Value) -> Tensor:
    device = next((each.device for each in values if isinstance(each, Tensor)), None)
    found: list[Value] = sorted(values, key=lambda each: isinstance(each, Numbers))  # tensors first
    made = as_tensor(found[0], device)
    for each in found[1:]:
        if isinstance(each, Numbers) and len(each.items) == 1 and each.array.ndim <= made.dim():
            bound = each.items[0]
            made = made.clamp(min=bound) if o.kind == "Max" else made.clamp(max=bound)
        else:
            pair = as_tensor(each, device)
            made = torch.maximum(made, pair) if o.kind == "Max" else torch.minimum(made, pair)
    return made


@operator("Sum", "Mean")
def total(o: Operator, *values: Tensor) -> Tensor:
    made = functools.reduce(lambda a, b: a + b, values)
    return made if o.kind == "Sum" else made / len(values)


@operator("Where", mixed=True)
def where(o: Operator, condition: Value, a: Value, b: Value) -> Tensor:
    device = next((each.device for each in (condition, a, b) if isinstance(each, Tensor)), None)
    return torch.where(as_tensor(condition, device).bool(), as_tensor(a, device), as_tensor(b, device))


@operator("Clip", numbers=(1, 2))
def clip(o: Operator, x: Tensor, least: Numbers | None = None, most: Numbers | None = None) -> Tensor:
    low = number(least) if least is not None else o.get("min", None)
    high = number(most) if most is not None else o.get("max", None)
    if low == 0 and high == 6:
        return F.relu6(x)
    return x if low is None and high is None else x.clamp(low, high)


@operator("Identity", mixed=True)
def identity(o: Operator, x: Any) -> Any:
    return [list(x)] if isinstance(x, list) else x


@operator("Cast", "CastLike", mixed=True)
def cast(o: Operator, x: Value, like: Value | None = None) -> Value:
    if o.get("to", 0) in HALVES:
        raise ValueError("torch has no tensors of integers of 4 bits")
    kind = like.dtype if like is not None else precise(torch_type(o.get("to", 0), o.place))
    x = as_tensor(x)
    if kind is x.dtype:
        return x
    if kind is torch.bool:
        return x != 0
    if x.is_floating_point() and not kind.is_floating_point:
        return x.trunc().to(torch.int64).to(kind) if kind is not torch.int64 else x.to(kind)
    if kind.is_floating_point and kind.itemsize == 1:
        if not o.get("saturate", 1):
            raise NotCovered("what is beyond the numbers of 8 bits is to become NaN or infinity")
        bounds = torch.finfo(kind)
        x = x.clamp(bounds.min, bounds.max)
    return x.to(kind)


@operator("IsInf")
def is_inf(o: Operator, x: Tensor) -> Tensor:
    found = torch.isinf(x)
    if not o.get("detect_negative", 1):
        found = found & (x > 0)
    return found if o.get("detect_positive", 1) else found & (x < 0)


@operator("Elu")
def elu(o: Operator, x: Tensor) -> Tensor:
    return F.elu(x, o.get("alpha", 1.0))


@operator("Celu")
def celu(o: Operator, x: Tensor) -> Tensor:
    return F.celu(x, o.get("alpha", 1.0))


@operator("Selu")
def selu(o: Operator, x: Tensor) -> Tensor:
    alpha, gamma = o.get("alpha", 1.67326319217681884765625), o.get("gamma", 1.05070102214813232421875)
    return gamma * F.elu(x, alpha)


@operator("LeakyRelu")
def leaky_relu(o: Operator, x: Tensor) -> Tensor:
    return F.leaky_relu(x, o.get("alpha", 0.01))


@operator("ThresholdedRelu")
def thresholded_relu(o: Operator, x: Tensor) -> Tensor:
    return torch.where(x > o.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("HardSigmoid")
def hard_sigmoid(o: Operator, x: Tensor) -> Tensor:
    alpha, beta = o.get("alpha", 0.2), o.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-7) and beta == 0.5:
        return F.hardsigmoid(x)
    return (x * alpha + beta).clamp(0, 1)


@operator("Gelu")
def gelu(o: Operator, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=o.get("approximate", "none"))


@operator("Gelu", domain=MICROSOFT)
def gelu_exact(o: Operator, x: Tensor) -> Tensor:
    return F.gelu(x)


@operator("Swish")
def swish(o: Operator, x: Tensor) -> Tensor:
    alpha = o.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(o: Operator, x: Tensor) -> Tensor:
    return x * torch.sigmoid(o.get("alpha", 1.702) * x)


@operator("PRelu")
def prelu(o: Operator, x: Tensor, slope: Tensor) -> Tensor:
    """A slope (channels, 1, …) is torch's own operator; others are broadcast from the right."""
    if x.dim() >= 2 and slope.dim() == x.dim() - 1 and all(size == 1 for size in slope.shape[1:]):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@operator("Shrink")
def shrink(o: Operator, x: Tensor) -> Tensor:
    bias, bound = o.get("bias", 0.0), o.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, zero)).to(x.dtype)


@operator("Dropout", numbers=(1, 2))
def dropout(o: Operator, x: Tensor, ratio: Value | None = None, training: Value | None = None) -> list[Tensor]:
    """In train mode values are dropped, whether the file was exported for training or not."""
    share = float(number(ratio)) if ratio is not None else o.get("ratio", 0.5)
    made = F.dropout(x, share, o.training)
    return [made, torch.ones_like(x, dtype=torch.bool)][: max(o.outputs, 1)]
