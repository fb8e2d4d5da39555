"""Elementwise ATen operators as ONNX operators, as torch.onnx exports them; for measuring only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from surgeon.latency.onnx_builder import Builder

#: Writes one operator: takes the builder, the value it is applied to, its other operands, and its settings.
Writer = Callable[[Builder, str, list[str], Mapping[str, Any]], str]


def _plain(operator: str, **attributes: Any) -> Writer:
    return lambda b, x, others, settings: b.node(operator, [x, *others], **attributes)


def _clip(b: Builder, x: str, others: list[str], settings: Mapping[str, Any]) -> str:
    low, high = settings.get("min", settings.get("min_val")), settings.get("max", settings.get("max_val"))
    bounds = ["" if bound is None else b.constant(float(bound)) for bound in (low, high)]
    return b.node("Clip", [x, *bounds])


#: By the names of the ATen operators.
POINTWISE: dict[str, Writer] = {
    "relu": _plain("Relu"),
    "relu6": lambda b, x, others, settings: _clip(b, x, others, {"min": 0, "max": 6}),
    "hardtanh": _clip,
    "clamp": _clip,
    "clamp_min": _clip,
    "clamp_max": _clip,
    "sigmoid": _plain("Sigmoid"),
    "hardsigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hardswish": _plain("HardSwish"),
    "silu": lambda b, x, others, settings: b.node("Mul", [x, b.node("Sigmoid", [x])]),
    "gelu": lambda b, x, others, settings: b.node("Gelu", [x], approximate=str(settings.get("approximate", "none"))),
    "tanh": _plain("Tanh"),
    "leaky_relu": lambda b, x, others, settings: b.node(
        "LeakyRelu", [x], alpha=float(settings.get("negative_slope", 0.01))
    ),
    "elu": _plain("Elu"),
    "celu": _plain("Celu"),
    "selu": _plain("Selu"),
    "mish": _plain("Mish"),
    "softplus": _plain("Softplus"),
    "prelu": _plain("PRelu"),
    "exp": _plain("Exp"),
    "log": _plain("Log"),
    "erf": _plain("Erf"),
    "sqrt": _plain("Sqrt"),
    "rsqrt": lambda b, x, others, settings: b.node("Reciprocal", [b.node("Sqrt", [x])]),
    "square": lambda b, x, others, settings: b.node("Mul", [x, x]),
    "neg": _plain("Neg"),
    "abs": _plain("Abs"),
    "reciprocal": _plain("Reciprocal"),
    "pow": lambda b, x, others, settings: b.node("Pow", [x, *(others or [b.constant(2.0)])]),
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "rsub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _plain("Div"),
    "maximum": _plain("Max"),
    "minimum": _plain("Min"),
}
#: Those whose operands can be swapped.
COMMUTATIVE = {"add", "mul", "maximum", "minimum"}
