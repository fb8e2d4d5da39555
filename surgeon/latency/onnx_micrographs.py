"""One operator with what follows it elementwise, at given sizes, as a tiny ONNX graph of several equal copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.latency.onnx_builder import Builder
from surgeon.latency.pointwise_ops import POINTWISE

Sizes = Sequence[int]
Static = Mapping[str, Any]
#: Kinds with weights that may run in the NCHWc layout.
BLOCKS = {"conv", "depthwise", "grouped"}
#: Channels of what a feeder reads: a multiple of any CPU's vector width.
FED = 64
#: Adds one copy of an operator to the graph: its inputs, made once, in; the value and its shape out.
Body = Callable[[list[str]], tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Tiny:
    """A serialized graph, its inputs' shapes, and how many bytes of weights one copy reads."""

    model: bytes
    inputs: dict[str, tuple[int, ...]]


def tiny(kind: str, static: Static, dims: Sizes, copies: int = 1) -> Tiny:
    """The graph of `copies` operators of a kind that read the same inputs, each with weights and an output of its own.

    >>> conv = {"kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1], "pads": [1, 1, 1, 1], "spatial": [8, 8],
    ...         "batch": 1, "bias": True, "chain": [["relu", {}, []]]}
    >>> tiny("conv", conv, (16, 32), copies=2).inputs
    {'x1': (1, 16, 8, 8)}
    """
    b = Builder()
    shapes, body = KINDS[kind](b, static, [int(size) for size in dims])
    inputs = [b.input(shape) for shape in shapes]
    extra: list[str] = []
    for index in range(copies):
        value, out = body(inputs)
        if not index:
            feed = _feeder if kind in BLOCKS else Builder.input
            extra = [feed(b, shape) for shape in operand_shapes(static.get("chain", ()), out)]
        b.output(apply(b, static.get("chain", ()), value, out, extra))
    return Tiny(b.bytes(), b.inputs)


def _feeder(b: Builder, shape: Sizes) -> str:
    """A tensor as a convolution hands it on: what is added to a convolution's result mostly comes from another one."""
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
    """The shapes of the tensors that the elementwise operators read as well, in their order."""
    return [masked(operand[2:], out) for _, _, operands in chain for operand in operands if operand.startswith("x:")]


def masked(mask: str, out: Sizes) -> tuple[int, ...]:
    """`out` where the mask has an n, else 1; a shorter mask is that of the last axes, and of a longer one the first
    letters stand for the leading axes, which the graph has rolled into one."""
    extra = len(mask) - len(out)
    if extra > 0:
        mask = ("n" if "n" in mask[: extra + 1] else "1") + mask[extra + 1:]
    return tuple(size if letter == "n" else 1 for letter, size in zip(mask, out[len(out) - len(mask):], strict=True))


def apply(b: Builder, chain: Sequence[Any], value: str, out: Sizes, extra: list[str]) -> str:
    """Add the elementwise operators of a chain behind `value`, of shape `out`; `extra` are what else they read."""
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


def _conv(b: Builder, static: Static, weight: Sizes, channels: int, groups: int) -> tuple[list[Any], Body]:
    shape = [static["batch"], channels, *static["spatial"]]
    out = (static["batch"], weight[0], *convolved(static))

    def body(inputs: list[str]) -> tuple[str, tuple[int, ...]]:
        weights = [b.weight([*weight, *static["kernel"]])]
        if static["bias"]:
            weights.append(b.weight([weight[0]]))
        value = b.node(
            "Conv", [inputs[0], *weights], kernel_shape=static["kernel"], strides=static["stride"],
            pads=static["pads"], dilations=static["dilation"], group=groups,
        )
        return value, out

    return [shape], body


def _dense(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    return _conv(b, static, (dims[1], dims[0]), dims[0], 1)


def _depthwise(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    return _conv(b, static, (dims[0] * static["multiplier"], 1), dims[0], dims[0])


def _grouped(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    """dims: channels in, channels out, channels in of one group; sizes that do not fit have their work all the same."""
    groups = max(1, min(dims[0] // dims[2], dims[1]))
    return _conv(b, static, (dims[1] // groups * groups, dims[2]), groups * dims[2], groups)


def _conv_transpose(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    shape = [static["batch"], dims[0], *static["spatial"]]
    rank = len(static["kernel"])
    out = (
        static["batch"], dims[1],
        *((n - 1) * s - p - q + d * (k - 1) + 1 + o for n, s, p, q, d, k, o in zip(
            static["spatial"], static["stride"], static["pads"][:rank], static["pads"][rank:], static["dilation"],
            static["kernel"], static["output_padding"], strict=True,
        )),
    )

    def body(inputs: list[str]) -> tuple[str, tuple[int, ...]]:
        value = b.node(
            "ConvTranspose", [inputs[0], b.weight([*dims, *static["kernel"]])], kernel_shape=static["kernel"],
            strides=static["stride"], pads=static["pads"], dilations=static["dilation"],
            output_padding=static["output_padding"],
        )
        return value, out

    return [shape], body


def _linear(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    rows, inner, outer = dims
    flat = static["rank"] == 2

    def body(inputs: list[str]) -> tuple[str, tuple[int, ...]]:
        if flat:
            weights = [b.weight([outer, inner]), *([b.weight([outer])] if static["bias"] else [])]
            return b.node("Gemm", [inputs[0], *weights], transB=1), (rows, outer)
        value = b.node("MatMul", [inputs[0], b.weight([inner, outer])])
        if static["bias"]:
            value = b.node("Add", [value, b.weight([outer])])
        return value, (1, rows, outer)

    return [[rows, inner] if flat else [1, rows, inner]], body


def _matmul(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    batch, rows, inner, outer = dims
    shapes = [[batch, rows, inner]] + ([] if static["weight"] else [[batch, inner, outer]])

    def body(inputs: list[str]) -> tuple[str, tuple[int, ...]]:
        other = b.weight([batch, inner, outer]) if static["weight"] else inputs[1]
        return b.node("MatMul", [inputs[0], other]), (batch, rows, outer)

    return shapes, body


def _attention(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    """dims: heads of the whole batch, queries, keys, head size, size of the values."""
    heads, queries, keys, inner, outer = dims
    shapes = [[1, heads, queries, inner], [1, heads, keys, inner], [1, heads, keys, outer]]
    if static["mask"]:
        shapes.append([1, 1, queries, keys])

    def body(inputs: list[str]) -> tuple[str, tuple[int, ...]]:
        scaled = b.node("Mul", [inputs[0], b.constant(inner**-0.5)])
        scores = b.node("MatMul", [scaled, b.node("Transpose", [inputs[1]], perm=[0, 1, 3, 2])])
        if static["mask"]:
            scores = b.node("Add", [scores, inputs[3]])
        return b.node("MatMul", [b.node("Softmax", [scores], axis=-1), inputs[2]]), (1, heads, queries, outer)

    return shapes, body


def _layer_norm(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    rows, inner = dims

    def body(inputs: list[str]) -> tuple[str, tuple[int, ...]]:
        weights = [b.weight([inner]), b.weight([inner])]
        return b.node("LayerNormalization", [inputs[0], *weights], axis=-1), (1, rows, inner)

    return [[1, rows, inner]], body


def _same_shape(operator: str) -> Callable[[Builder, Static, Sizes], tuple[list[Any], Body]]:
    def kind(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
        def body(inputs: list[str]) -> tuple[str, tuple[int, ...]]:
            return b.node(operator, [inputs[0]], **static["attributes"]), tuple(dims)

        return [list(dims)], body

    return kind


def _pool(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    shape = [static["batch"], dims[0], *static["spatial"]]
    settings = {"kernel_shape": static["kernel"], "strides": static["stride"], "pads": static["pads"]}
    settings["ceil_mode"] = int(static["ceil"])
    if static["operator"] == "MaxPool":
        settings["dilations"] = static["dilation"]
    out = (static["batch"], dims[0], *static["out"])
    return [shape], lambda inputs: (b.node(static["operator"], [inputs[0]], **settings), out)


def _reduce(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    axes = [axis % len(dims) for axis in static["axes"]]
    out = tuple(1 if axis in axes else size for axis, size in enumerate(dims))
    return [list(dims)], lambda inputs: (b.node(static["operator"], [inputs[0], b.integers(axes)], keepdims=1), out)


def _pointwise(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    """Elementwise operators alone: the first reads a tensor of the mask `first`."""
    return [masked(static["first"], dims)], lambda inputs: (inputs[0], tuple(dims))


def _batch_norm(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    def body(inputs: list[str]) -> tuple[str, tuple[int, ...]]:
        return b.node("BatchNormalization", [inputs[0], *(b.weight([dims[1]]) for _ in range(4))]), tuple(dims)

    return [list(dims)], body


def _copy(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    """Elements that are moved: dims holds their number."""
    half = max(1, dims[0] // 2)
    return [[half], [half]], lambda inputs: (b.node("Concat", [*inputs], axis=0), (2 * half,))


def _work(b: Builder, static: Static, dims: Sizes) -> tuple[list[Any], Body]:
    """Multiply-accumulate operations of no known kind: dims holds their thousands."""
    inner = max(1, round(dims[0] * 1000 / 64 / 64))
    return _matmul(b, {"weight": True}, (1, 64, inner, 64))


#: By kind: the shapes of the inputs, and what adds one copy.
KINDS: dict[str, Callable[[Builder, Static, Sizes], tuple[list[Any], Body]]] = {
    "conv": _dense,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "attention": _attention,
    "layer_norm": _layer_norm,
    "softmax": _same_shape("Softmax"),
    "transpose": _same_shape("Transpose"),
    "pool": _pool,
    "reduce": _reduce,
    "pointwise": _pointwise,
    "batch_norm": _batch_norm,
    "copy": _copy,
    "work": _work,
}
