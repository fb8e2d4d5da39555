"""One operator and the elementwise chain after it, at given sizes, as a tiny ONNX graph of several copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.latency.onnx_builder import Builder
from surgeon.latency.pointwise_ops import POINTWISE

Sizes = Sequence[int]
Static = Mapping[str, Any]
#: Kinds with weights that can run in the NCHWc layout.
BLOCKS = {"conv", "depthwise", "grouped"}
#: Channels of a feeder's input: a multiple of any CPU's vector width.
FED = 64


@dataclass(frozen=True)
class Recipe:
    """How to build copies of an operator: the shapes of their common inputs, a function that adds a copy to the graph
    and returns the name of its output, and the output's shape for kinds that elementwise operators are fused with."""

    inputs: Sequence[Sizes]
    add: Callable[..., str]
    out: Sizes = ()


@dataclass(frozen=True)
class Tiny:
    """A serialized graph, and its inputs' shapes."""

    model: bytes
    inputs: dict[str, tuple[int, ...]]


def tiny(kind: str, static: Static, dims: Sizes, copies: int = 1) -> Tiny:
    """The graph of `copies` operators of a kind that read the same inputs, each with its own weights and output.

    >>> conv = {"kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1], "pads": [1, 1, 1, 1], "spatial": [8, 8],
    ...         "batch": 1, "bias": True, "chain": [["relu", {}, []]]}
    >>> tiny("conv", conv, (16, 32), copies=2).inputs
    {'x1': (1, 16, 8, 8)}
    """
    b = Builder()
    recipe, chain = KINDS[kind](b, static, [int(size) for size in dims]), static.get("chain", ())
    inputs = [b.input(shape) for shape in recipe.inputs]
    extra: list[str] = []
    outputs = []
    for index in range(copies):
        value = recipe.add(*inputs)
        if not index:
            feed = _feeder if kind in BLOCKS else Builder.input
            extra = [feed(b, shape) for shape in operand_shapes(chain, recipe.out)]
        outputs.append(apply(b, chain, value, recipe.out, extra))
    return Tiny(b.finish(*outputs), b.inputs)


def _feeder(b: Builder, shape: Sizes) -> str:
    """A convolution's output: what is added to the result of a convolution mostly comes from another one."""
    if math.prod(shape[2:]) == 1:
        return b.input(shape)
    source = b.input([shape[0], FED, *shape[2:]])
    weight = b.weight([shape[1], FED, *(1 for _ in shape[2:])])
    return b.node("Conv", [source, weight], prefix="feed_")


def weight_bytes(kind: str, dims: Any, static: Static) -> Any:
    """Bytes of the weights that one copy reads; the sizes may be arrays."""
    match kind:
        case "conv" | "conv_transpose":
            return 4 * dims[0] * dims[1] * math.prod(static["kernel"])
        case "grouped":
            return 4 * dims[1] * dims[2] * math.prod(static["kernel"])
        case "depthwise":
            return 4 * dims[0] * int(static["multiplier"]) * math.prod(static["kernel"])
        case "linear":
            return 4 * dims[1] * dims[2]
        case "matmul" if static["weight"]:
            return 4 * dims[0] * dims[2] * dims[3]
    return 0


def positions(kind: str, dims: Sizes, static: Static) -> int:
    """How often one copy uses each of its weights."""
    match kind:
        case "conv" | "conv_transpose" | "grouped" | "depthwise":
            return int(static["batch"]) * math.prod(convolved(static))
        case "linear":
            return dims[0]
        case "matmul":
            return dims[1]
    return 1


def convolved(static: Static) -> list[int]:
    """The spatial sizes of a convolution's output."""
    rank = len(static["kernel"])
    before, after = static["pads"][:rank], static["pads"][rank:]
    return [
        (size + a + z - d * (k - 1) - 1) // s + 1
        for size, a, z, d, k, s in zip(
            static["spatial"], before, after, static["dilation"], static["kernel"], static["stride"], strict=True
        )
    ]


def operand_shapes(chain: Sequence[Any], out: Sizes) -> list[tuple[int, ...]]:
    """The shapes of the other tensors that the elementwise operators read, in order."""
    return [masked(operand[2:], out) for _, _, operands in chain for operand in operands if operand.startswith("x:")]


def masked(mask: str, out: Sizes) -> tuple[int, ...]:
    """`out` where the mask has an n, else 1. A shorter mask is for the last axes; of a longer one, the first letters
    are for the leading axes, which are merged into one in the graph."""
    extra = len(mask) - len(out)
    if extra > 0:
        mask = ("n" if "n" in mask[: extra + 1] else "1") + mask[extra + 1:]
    return tuple(size if letter == "n" else 1 for letter, size in zip(mask, out[len(out) - len(mask):], strict=True))


def apply(b: Builder, chain: Sequence[Any], value: str, out: Sizes, extra: list[str]) -> str:
    """Add the elementwise operators of a chain after `value`, of shape `out`; they also read the tensors `extra`."""
    extra = list(extra)
    for name, settings, operands in chain:
        others = []
        for operand in operands:
            kind, _, rest = operand.partition(":")
            if kind == "x":
                others.append(extra.pop(0))
            elif kind == "w":
                others.append(b.weight(masked(rest, out)))
            else:
                others.append(b.constant(float(rest)))
        value = POINTWISE[name](b, value, others, settings)
    return value


def _conv(b: Builder, static: Static, weight: Sizes, channels: int, groups: int) -> Recipe:
    def add(x: str) -> str:
        weights = [b.weight([*weight, *static["kernel"]]), *([b.weight([weight[0]])] if static["bias"] else [])]
        return b.node(
            "Conv", [x, *weights], kernel_shape=static["kernel"], strides=static["stride"],
            pads=static["pads"], dilations=static["dilation"], group=groups,
        )

    shape = [static["batch"], channels, *static["spatial"]]
    return Recipe([shape], add, (static["batch"], weight[0], *convolved(static)))


def _grouped(b: Builder, static: Static, dims: Sizes) -> Recipe:
    """dims: input channels, output channels, input channels of one group; sizes that do not fit are rounded."""
    groups = max(1, min(dims[0] // dims[2], dims[1]))
    return _conv(b, static, (dims[1] // groups * groups, dims[2]), groups * dims[2], groups)


def _conv_transpose(b: Builder, static: Static, dims: Sizes) -> Recipe:
    def add(x: str) -> str:
        return b.node(
            "ConvTranspose", [x, b.weight([*dims, *static["kernel"]])], kernel_shape=static["kernel"],
            strides=static["stride"], pads=static["pads"], dilations=static["dilation"],
            output_padding=static["output_padding"],
        )

    return Recipe([[static["batch"], dims[0], *static["spatial"]]], add)


def _linear(b: Builder, static: Static, dims: Sizes) -> Recipe:
    rows, inner, outer = dims

    def gemm(x: str) -> str:
        weights = [b.weight([outer, inner]), *([b.weight([outer])] if static["bias"] else [])]
        return b.node("Gemm", [x, *weights], transB=1)

    def matmul(x: str) -> str:
        value = b.node("MatMul", [x, b.weight([inner, outer])])
        return b.node("Add", [value, b.weight([outer])]) if static["bias"] else value

    if static["rank"] == 2:
        return Recipe([[rows, inner]], gemm, (rows, outer))
    return Recipe([[1, rows, inner]], matmul, (1, rows, outer))


def _matmul(b: Builder, static: Static, dims: Sizes) -> Recipe:
    batch, rows, inner, outer = dims
    left, right = [batch, rows, inner], [batch, inner, outer]
    if static["weight"]:
        return Recipe([left], lambda x: b.node("MatMul", [x, b.weight(right)]), (batch, rows, outer))
    return Recipe([left, right], lambda x, y: b.node("MatMul", [x, y]), (batch, rows, outer))


def _attention(b: Builder, static: Static, dims: Sizes) -> Recipe:
    """dims: heads of the whole batch, queries, keys, head size, value size."""
    heads, queries, keys, inner, outer = dims

    def add(query: str, key: str, value: str, *mask: str) -> str:
        scaled = b.node("Mul", [query, b.constant(inner**-0.5)])
        scores = b.node("MatMul", [scaled, b.node("Transpose", [key], perm=[0, 1, 3, 2])])
        if mask:
            scores = b.node("Add", [scores, *mask])
        return b.node("MatMul", [b.node("Softmax", [scores], axis=-1), value])

    shapes = [[1, heads, queries, inner], [1, heads, keys, inner], [1, heads, keys, outer]]
    masks = [[1, 1, queries, keys]] if static["mask"] else []
    return Recipe([*shapes, *masks], add)


def _normalized(b: Builder, operator: str, shape: Sizes, parameter: Sizes, count: int, **attributes: Any) -> Recipe:
    """A norm with `count` parameters of one shape."""
    weights = lambda: [b.weight(parameter) for _ in range(count)]  # noqa: E731
    return Recipe([shape], lambda x: b.node(operator, [x, *weights()], **attributes), shape)


def _same_shape(operator: str) -> Callable[[Builder, Static, Sizes], Recipe]:
    """An operator of one input, by its attributes."""
    return lambda b, static, dims: Recipe([dims], lambda x: b.node(operator, [x], **static["attributes"]))


def _pool(b: Builder, static: Static, dims: Sizes) -> Recipe:
    settings = {"kernel_shape": static["kernel"], "strides": static["stride"], "pads": static["pads"]}
    settings["ceil_mode"] = int(static["ceil"])
    if static["operator"] == "MaxPool":
        settings["dilations"] = static["dilation"]
    shape = (static["batch"], dims[0], *static["spatial"])
    return Recipe([shape], lambda x: b.node(static["operator"], [x], **settings))


def _reduce(b: Builder, static: Static, dims: Sizes) -> Recipe:
    axes = [axis % len(dims) for axis in static["axes"]]
    return Recipe([dims], lambda x: b.node(static["operator"], [x, b.integers(axes)], keepdims=1))


def _copy(b: Builder, static: Static, dims: Sizes) -> Recipe:
    """A copy of elements: dims is their number."""
    half = max(1, dims[0] // 2)
    return Recipe([[half], [half]], lambda *parts: b.node("Concat", parts, axis=0))


def _work(b: Builder, static: Static, dims: Sizes) -> Recipe:
    """Multiply-accumulate operations of unknown kind: dims is their number in thousands."""
    inner = max(1, round(dims[0] * 1000 / 64 / 64))
    return _matmul(b, {"weight": True}, (1, 64, inner, 64))


KINDS: dict[str, Callable[[Builder, Static, Sizes], Recipe]] = {
    "conv": lambda b, static, dims: _conv(b, static, (dims[1], dims[0]), dims[0], 1),
    "depthwise": lambda b, static, dims: _conv(b, static, (dims[0] * static["multiplier"], 1), dims[0], dims[0]),
    "grouped": _grouped,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "attention": _attention,
    "layer_norm": lambda b, static, dims: _normalized(b, "LayerNormalization", (1, *dims), dims[1:], 2, axis=-1),
    "softmax": _same_shape("Softmax"),
    "transpose": _same_shape("Transpose"),
    "pool": _pool,
    "reduce": _reduce,
    # elementwise operators alone: the first reads a tensor of the mask `first`
    "pointwise": lambda b, static, dims: Recipe([masked(static["first"], dims)], lambda x: x, dims),
    "batch_norm": lambda b, static, dims: _normalized(b, "BatchNormalization", dims, [dims[1]], 4),
    "copy": _copy,
    "work": _work,
}
