"""Operators that act on each element: operands broadcast, and axes that are not stretched are the same axis."""

from __future__ import annotations

from typing import Any

from torch import fx

from surgeon.rules.base import Context, Typed, rule, where

_UNARY = """
abs acos acosh alpha_dropout angle asin asinh atan atanh bitwise_not ceil celu clamp clamp_max clamp_min clip clone
contiguous cos cosh deg2rad detach dropout elu erf erfc erfinv exp exp2 expm1 feature_dropout fill floor frac gelu
hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lgamma lift_fresh_copy lift_fresh log log10
log1p log2 log_sigmoid logical_not logit mish nan_to_num native_dropout neg positive pow.Tensor_Scalar reciprocal relu
relu6 round rrelu rsqrt selu sigmoid sign silu sin sinc sinh softplus softshrink sqrt square tan tanh tanhshrink
threshold to to.dtype trunc type_as _to_copy alias feature_alpha_dropout hardtanh threshold bernoulli float
zero zeros_like ones_like full_like empty_like rand_like randn_like new_tensor requires_grad
""".split()

_BINARY = """
add addcdiv addcmul atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor copy copysign div
divide eq floor_divide fmax fmin fmod ge greater greater_equal gt heaviside hypot ldexp le lerp less less_equal
logaddexp logical_and logical_or logical_xor lt masked_fill maximum minimum mul multiply ne not_equal pow
polar remainder rsub sub subtract true_divide where xlogy nextafter float_power special_xlogy
__and__ __or__ __xor__ __lshift__ __rshift__
""".split()


@rule(*dict.fromkeys(_UNARY))
def unary(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """The first tensor gives the axes; `fill` and `type_as` only read a scalar or a type from the second."""
    return Typed(c.of(a.get("self", a.get("input"))))


@rule(*dict.fromkeys(_BINARY), "max.other", "min.other", "clamp.Tensor", "clamp_max.Tensor", "clamp_min.Tensor")
def elementwise(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    operands = [c.of(value) for value in a.values() if isinstance(value, fx.Node)]
    return Typed(c.broadcast(operands, f"{where(node)}: operands whose units do not align"))


@rule("prelu")
def prelu(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, w = c.of(a["self"]), c.of(a["weight"])
    if w and w[0].size != 1:
        c.unify(x[1 if len(x) > 1 else 0], w[0], f"{where(node)}: the slopes do not align with the channels")
    return Typed(x)
