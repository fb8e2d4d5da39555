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


#: ATen operators that are one ONNX operator, without settings.
_PLAIN = """
relu:Relu sigmoid:Sigmoid hardswish:HardSwish tanh:Tanh elu:Elu celu:Celu selu:Selu mish:Mish softplus:Softplus
prelu:PRelu exp:Exp log:Log erf:Erf sqrt:Sqrt neg:Neg abs:Abs reciprocal:Reciprocal add:Add sub:Sub rsub:Sub mul:Mul
div:Div maximum:Max minimum:Min
"""

#: By the names of the ATen operators.
POINTWISE: dict[str, Writer] = {
    **{name: _plain(operator) for name, operator in (pair.split(":") for pair in _PLAIN.split())},
    "relu6": lambda b, x, others, settings: _clip(b, x, others, {"min": 0, "max": 6}),
    "hardtanh": _clip,
    "clamp": _clip,
    "clamp_min": _clip,
    "clamp_max": _clip,
    "hardsigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    "silu": lambda b, x, others, settings: b.node("Mul", [x, b.node("Sigmoid", [x])]),
    "gelu": lambda b, x, others, settings: b.node("Gelu", [x], approximate=str(settings.get("approximate", "none"))),
    "leaky_relu": lambda b, x, others, settings: b.node(
        "LeakyRelu", [x], alpha=float(settings.get("negative_slope", 0.01))
    ),
    "rsqrt": lambda b, x, others, settings: b.node("Reciprocal", [b.node("Sqrt", [x])]),
    "square": lambda b, x, others, settings: b.node("Mul", [x, x]),
    "pow": lambda b, x, others, settings: b.node("Pow", [x, *(others or [b.constant(2.0)])]),
}
#: Those whose operands can be swapped.
COMMUTATIVE = {"add", "mul", "maximum", "minimum"}
